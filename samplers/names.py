"""Short names of samplers, for the command line."""

from __future__ import annotations

from typing import Any

from ..guidance.errors import InputError, nearest

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
    "unipc": ("UniPCMultistepScheduler", {}),
    "deis": ("DEISMultistepScheduler", {}),
    "sa-solver": ("SASolverScheduler", {}),
    "lcm": ("LCMScheduler", {}),
    "tcd": ("TCDScheduler", {}),
    "edm-euler": ("EDMEulerScheduler", {}),
    "edm-dpm++2m": ("EDMDPMSolverMultistepScheduler", {}),
    "flow-euler": ("FlowMatchEulerDiscreteScheduler", {}),
    "flow-heun": ("FlowMatchHeunDiscreteScheduler", {}),
}
"""Name: diffusers class, and what the name sets in its configuration."""


def by_name(name: str, config: Any = None) -> Any:
    """The diffusers scheduler with a short name, such as ``"dpm++2m"`` or ``"euler-karras"``.

    Args:
        name: one of `SAMPLERS`, with ``-karras``, ``-exponential`` or ``-beta`` for the spacing of its sigmas.
        config: configuration of the scheduler it replaces: betas, prediction type and spacing carry over.

    Raises:
        InputError: an unknown name, or a spacing that this sampler does not have.
    """
    import diffusers

    base, _, spacing = name.rpartition("-")
    options: dict[str, Any] = {}
    if name not in SAMPLERS and spacing in _SPACINGS:
        name, options = base, {_SPACINGS[spacing]: True}
    if name not in SAMPLERS:
        raise InputError(f"unknown sampler {name!r}{nearest(name, SAMPLERS)}")
    class_name, preset = SAMPLERS[name]
    cls = getattr(diffusers, class_name)
    if unknown := set(options) - set(cls().config):
        raise InputError(f"sampler {name!r} has no {unknown.pop()}; drop '-{spacing}'")
    # A spacing of the old scheduler's is not wanted with the new one unless the name says so.
    plain = {flag: False for flag in _SPACINGS.values() if flag in cls().config}
    return cls.from_config(dict(config or {}), **{**plain, **preset, **options})
