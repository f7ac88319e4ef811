"""Short names of samplers, for the command line; and which of them a model can use."""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..guidance.errors import InputError, UnsupportedSchedulerError, nearest
from ..guidance.prediction import Parameterization
from .levels import emission, option, parameterization
from .lists import Levels, arguments, read_levels

_SPACINGS = {"karras": "use_karras_sigmas", "exponential": "use_exponential_sigmas", "beta": "use_beta_sigmas"}

SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "ddpm": ("DDPMScheduler", {}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler-a": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "lms": ("LMSDiscreteScheduler", {}),
    "kdpm2": ("KDPM2DiscreteScheduler", {}),
    "kdpm2-a": ("KDPM2AncestralDiscreteScheduler", {}),
    "dpm++2m": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "dpm++2m-sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "dpm++2s": ("DPMSolverSinglestepScheduler", {"algorithm_type": "dpmsolver++"}),
    "dpm++sde": ("DPMSolverSDEScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {"solver_type": "bh2"}),
    "deis": ("DEISMultistepScheduler", {"algorithm_type": "deis", "solver_type": "logrho"}),
    "sa-solver": ("SASolverScheduler", {"algorithm_type": "data_prediction"}),
    "lcm": ("LCMScheduler", {}),
    "tcd": ("TCDScheduler", {}),
    "edm-euler": ("EDMEulerScheduler", {}),
    "edm-dpm++2m": ("EDMDPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "flow-euler": ("FlowMatchEulerDiscreteScheduler", {}),
    "flow-heun": ("FlowMatchHeunDiscreteScheduler", {}),
}
"""Name: diffusers class, and what the name sets in its configuration, whatever the model's own scheduler has there."""

OWN = "own"
"""The name of the scheduler that a model came with, whatever it is."""
ELSEWHERE = {"dpm2": "kdpm2", "dpm2a": "kdpm2-a", "plms": "pndm"}
"""Names of other programs that no spelling leads to, without spaces and hyphens."""
NEEDED = {"lms": "scipy", "beta": "scipy", "dpm++sde": "torchsde"}
"""The package that a sampler or a spacing imports for itself; the extra `schedulers` has them all."""
KEPT = ("prediction_type", "sigma_data", "sigma_min", "sigma_max", "sigma_schedule")
"""What says what a network emits, and between which levels if it is EDM's."""


def canonical(name: str) -> str:
    """Return the short name of a sampler from any accepted spelling.

    Case, spaces, hyphens and underscores do not count, ``pp`` is ``++`` and ``ancestral`` is ``a``: the names of A1111
    and ComfyUI are accepted.

    Args:
        name: one of `SAMPLERS`, with ``-karras``, ``-exponential`` or ``-beta`` for the spacing of its sigmas; what
            another program calls it; or ``own``, the scheduler that a model came with. Behind an ``@`` may stand a list
            of levels: ``euler@ays``, ``euler@sigmas=14.6,2.7,0.15``, ``dpm++2m@timesteps=999,545,24``.

    Raises:
        InputError: there is no such sampler or list.

    >>> canonical("DPM++ 2M Karras"), canonical("Euler a"), canonical("dpm_2_ancestral")
    ('dpm++2m-karras', 'euler-a', 'kdpm2-a')
    """
    name, at, levels = name.partition("@")
    if at:
        if _parts(known := canonical(name))[1] in _SPACINGS:
            raise InputError(f"sampler {known!r} makes its own levels, and a list says others; leave one of them out")
        return f"{known}@{read_levels(levels)}"
    names = {**{_squashed(one): one for one in SAMPLERS}, **ELSEWHERE, OWN: OWN}
    for spacing in _SPACINGS:
        names |= {f"{squashed}{spacing}": f"{one}-{spacing}" for squashed, one in names.items() if one in SAMPLERS}
    if (squashed := _squashed(name)) in names:
        return names[squashed]
    base, _, spacing = re.sub(r"[\s_]+", "-", name.strip().lower()).rpartition("-")
    meant = difflib.get_close_matches(spacing, _SPACINGS, n=1) if names.get(_squashed(base)) in SAMPLERS else []
    hint = f"; did you mean '{names[_squashed(base)]}-{meant[0]}'?" if meant else nearest(name.lower(), SAMPLERS)
    raise InputError(f"unknown sampler {name!r}{hint}")


def _squashed(name: str) -> str:
    return re.sub(r"[\s_-]", "", name.lower()).replace("pp", "++").replace("ancestral", "a")


def levels_of(name: str) -> Levels | None:
    """The list of levels behind a sampler's name; None where there is none.

    Raises:
        InputError: there is no such list.
    """
    _, at, levels = name.partition("@")
    return read_levels(levels) if at else None


def by_name(name: str, replaced: Any = None) -> Any:
    """Make the diffusers scheduler with a short name, such as ``"dpm++2m"`` or ``"euler-karras"``.

    Args:
        name: as `canonical` reads it.
        replaced: the scheduler that it replaces, or its configuration: betas, prediction type and spacing carry over.
            A scheduler, unlike a configuration, is also checked: its network must emit what the new one reads. The name
            ``own`` makes a new scheduler with the configuration of `replaced`.

    Raises:
        InputError: an unknown name, a spacing or a list that this sampler does not take, a package that is missing, or
            a sampler that does not go with the network that runs under `replaced`.
    """
    known = canonical(name)
    if (levels := levels_of(known)) is not None:
        scheduler = by_name(known.partition("@")[0], replaced)
        arguments(scheduler, levels, len(levels.values) - bool(levels.name))
        return scheduler
    if known == OWN:
        if not hasattr(replaced, "config"):
            raise InputError(f"sampler {OWN!r} is the scheduler that a model came with, and there is no model here")
        return type(replaced).from_config(replaced.config)
    if package := _missing(known):
        raise InputError(
            f"sampler {name!r} needs the package {package}, which is not installed; run: pip install "
            "'guidestack[schedulers]'"
        )
    cls, config, own = _settings(known, replaced)
    if (emits := _emitted(replaced)) is not None and (reads := _read(cls, config, own)) != emits:
        installed = [one for one in SAMPLERS if not _missing(one)]
        fit = [*(one for one in installed if _read(*_settings(one, replaced)) == emits), OWN]
        raise InputError(
            f"sampler {name!r} is for a network that emits {repr(reads.name) if reads else 'another form'}, and this "
            f"model's emits {emits.name!r}; it can use {', '.join(fit)}"
        )
    try:
        return cls.from_config(config, **own)
    except (ValueError, NotImplementedError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"sampler {name!r} does not go with this model's scheduler: {reason}") from None


def default(own: Any, wanted: Sequence[str] = ("dpm++2m",)) -> str:
    """The first of the samplers `wanted` that a model with the scheduler `own` can use; ``"own"`` where none can."""
    for name in wanted:
        try:
            by_name(name, own)
        except InputError:
            continue
        return name
    return OWN


def scheduler_with_steps(name: str, replaced: Any, steps: int) -> Any:
    """Make a scheduler as `by_name` does, and set its timesteps.

    Args:
        name: as in `by_name`.
        replaced: as in `by_name`.
        steps: steps of the sampler. Levels that depend on the picture's size are those of a large one.

    Raises:
        InputError: as `by_name`, or the sampler does not take so many steps.
    """
    scheduler = by_name(name, replaced)
    dynamic = option(scheduler, "use_dynamic_shifting")
    size = {"mu": option(scheduler, "max_shift") or 1.15} if dynamic else {}
    levels = levels_of(name)
    given = {"num_inference_steps": steps} if levels is None else arguments(scheduler, levels, steps)
    try:
        scheduler.set_timesteps(**given, **size)
    except (ValueError, IndexError) as error:
        raise InputError(f"{name} does not take {steps} steps: {error}") from None
    return scheduler


def _emitted(scheduler: Any) -> Parameterization | None:
    """What a network emits that runs under `scheduler`; None where that is not known."""
    try:
        return parameterization(scheduler) if hasattr(scheduler, "config") else None
    except UnsupportedSchedulerError:
        return None


def _read(cls: Any, config: Mapping[str, Any], own: Mapping[str, Any]) -> Parameterization | None:
    """Return what a scheduler of this class and configuration reads; None if its configuration contradicts itself."""
    defaults = {name: one.default for name, one in inspect.signature(cls.__init__).parameters.items()}
    try:
        return emission(cls, {**defaults, **config, **own})
    except UnsupportedSchedulerError:
        return None


def _parts(name: str) -> tuple[str, str]:
    """The sampler and the spacing in a name of `canonical`; "" for none."""
    base, _, spacing = (name, "", "") if name in SAMPLERS else name.rpartition("-")
    return base, spacing


def _missing(name: str) -> str | None:
    """The package that a sampler imports and that is not installed: diffusers then has no such class."""
    needed = [NEEDED[part] for part in _parts(name) if part in NEEDED]
    return next((package for package in needed if importlib.util.find_spec(package) is None), None)


def _settings(name: str, replaced: Any) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """Return a sampler's class, the configuration that it is made from, and the options that are set on top.

    Raises:
        InputError: the sampler does not have this spacing.
    """
    import diffusers

    base, spacing = _parts(name)
    class_name, preset = SAMPLERS[base]
    cls = getattr(diffusers, class_name)
    takes = inspect.signature(cls.__init__).parameters
    options = {_SPACINGS[spacing]: True} if spacing else {}
    if unknown := set(options) - set(takes):
        raise InputError(f"sampler {name!r} has no {unknown.pop()}; drop '-{spacing}'")
    config = dict(getattr(replaced, "config", replaced) or {})
    # A spacing of the old scheduler's is not wanted with the new one unless the name says so.
    own: dict[str, Any] = {flag: False for flag in _SPACINGS.values() if flag in takes}
    # What the network emits is not left to defaults, which differ from class to class.
    own |= {one: config[one] for one in KEPT if one in takes and config.get(one) is not None}
    # Nor is what the old one did not do; and the shift of a flow has two names.
    if config and "clip_sample" in takes:
        own["clip_sample"] = config.get("clip_sample", False)
    for one, other in itertools.permutations(("shift", "flow_shift")):
        if one in takes and one not in config and other in config:
            own[one] = config[other]
    return cls, config, {**own, **preset, **options}
