"""doctor(): the self-test of a pipeline and its family record."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from ...guidance.errors import GuidestackError, InputError, UnsupportedPipelineError, nearest
from ...samplers import parameterization
from ..edits import architecture
from ..families.lookup import denoisers_of, family_of, signature_of
from ..families.record import FAMILIES, Family, Pipeline
from ..families.suggest import nearest_records
from ..second import Second, second_networks
from ..surface import bare
from . import example
from .checks import CHECKS, GUIDED, Answer
from .diagnosis import FAIL, NOT_MADE, PASS, Check, Diagnosis
from .runs import Runs
from .state import kept
from .trials import trials
from .watch import RecordError


def doctor(
    pipe: Pipeline,
    call: Mapping[str, Any] | None = None,
    *,
    rules: bool = True,
    networks: Mapping[str, Any] | None = None,
) -> Diagnosis:
    """Check by small runs that `guide` works on a pipeline: a self-test of a model and of its family record.

    The pipeline makes two samples in two steps, as small as it allows, without decoding. The checks compare and count
    what its denoiser and its scheduler are given, with and without guidance, by itself and through `guide`.

    Args:
        pipe: a pipeline. It keeps its device and type, and is left as it was found.
        call: arguments to call it with in place of those made up: a picture of your own, embeddings for a pipeline
            without text encoders. No guidance arguments.
        rules: also run every rule of the registry, for the table of which run on it.
        networks: further networks for these rules, as in `guide`; one that cannot be used is a failed check.

    Returns:
        The diagnosis; ``str`` of it is a page. A check that fails names the field of the record, or the rule, that is
        wrong; one that cannot be made on this pipeline says why.

    Raises:
        InputError: `call` has arguments that rules replace.

    Cost: about 25 small calls of the pipeline, 12 without `rules`.
    """
    pipe = bare(pipe)
    name = type(pipe).__name__
    try:
        family = family_of(pipe)
    except UnsupportedPipelineError:
        return unrecorded(name, type(pipe), vars(pipe), rules)
    if wrong := sorted(set(call or {}) & set(family.owned) - {family.embedded(pipe)} if _there(pipe, family) else ()):
        raise InputError(f"call= has {wrong[0]!r}, which rules replace: leave it out")
    if wrong_name := _not_taken(pipe, family):
        return Diagnosis(name, "", _rest([Check("record", FAIL, wrong_name)], "the record is wrong", rules))
    found = [Check("record", PASS, _record(name, family))]
    try:
        denoisers_of(pipe, family)
        parameterization(pipe.scheduler)
    except (GuidestackError, AttributeError) as error:
        found.append(Check("components", FAIL, _line(error)))
        return Diagnosis(name, "", _rest(found, "its components cannot be used", rules))
    if broken := _not_finite(pipe):
        found.append(Check("components", FAIL, broken))
        return Diagnosis(name, "", _rest(found, "its weights cannot be used", rules))
    found.append(Check("components", PASS, f"{family.denoiser} and {type(pipe.scheduler).__name__} are known"))
    seconds: dict[str, Second] = {}
    try:
        seconds = second_networks(pipe, family, networks)
        if seconds:
            found.append(Check("networks", PASS, f"{', '.join(seconds)}: of the shape of the pipeline's own"))
    except GuidestackError as error:
        found.append(Check("networks", FAIL, _line(error)))
    with kept(pipe):
        if hasattr(pipe, "set_progress_bar_config"):
            pipe.set_progress_bar_config(disable=True)
        with _silent():
            return _examined(pipe, family, found, dict(call or {}), rules, seconds)


@contextmanager
def _silent() -> Iterator[None]:
    """Silence the log lines that diffusers writes at every call, while the context lasts."""
    if "diffusers" not in sys.modules:
        yield
        return
    logging: Any = sys.modules["diffusers"].utils.logging
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _not_finite(pipe: Pipeline) -> str:
    """A line that says which weights of a pipeline hold NaN or Inf; "" where none does."""
    for name, component in vars(pipe).items():
        if not isinstance(component, torch.nn.Module):
            continue
        wrong = [one for one, weight in component.named_parameters() if not _finite(weight)]
        if wrong:
            modules = list(dict.fromkeys(".".join([name, *one.split(".")[:-1]]) for one in wrong))
            more = f" and {len(modules) - 1} more modules" if len(modules) > 1 else ""
            parameter = wrong[0].rpartition(".")[2]
            return (
                f"{modules[0]}{more}: weights that are not finite ({parameter} first); load the model again: its file "
                "is damaged, or its numbers are too large for the type that it was cast to"
            )
    return ""


def _finite(weight: torch.Tensor) -> bool:
    if weight.is_meta or not weight.is_floating_point() or weight.element_size() < 2:  # offloaded, or quantized
        return True
    return bool(weight.detach().isfinite().all())


def _there(pipe: Pipeline, family: Family) -> bool:
    return all(getattr(pipe, name, None) is not None for name in (family.denoiser, "scheduler"))


def _examined(
    pipe: Pipeline,
    family: Family,
    found: list[Check],
    given: dict[str, Any],
    rules: bool,
    networks: Mapping[str, Second],
) -> Diagnosis:
    name = type(pipe).__name__
    runs, answer = _first_runs(pipe, family, given)
    found.append(Check("inputs", *answer))
    if runs is None:
        return Diagnosis(name, "", _rest(found, "the pipeline itself does not run", rules))
    refused = _answer(_report, runs)
    for one, check in CHECKS.items():
        if refused[0] == FAIL and one in GUIDED:
            found.append(Check(one, NOT_MADE, f"there is no guided run: {refused[1]}"))
        else:
            found.append(Check(one, *_answer(check, runs)))
    tried = tuple(trials(pipe, family, lambda: example.fresh(runs.call), networks)) if rules else ()
    if rules:
        broken = [trial.rule for trial in tried if trial.broken]
        run = sum(trial.evaluations is not None for trial in tried)
        reason = (
            f"{', '.join(broken)}: see the table" if broken else f"{run} of {len(tried)} run; the others say why not"
        )
        found.append(Check("rules", FAIL if broken else PASS, reason))
    size = tuple(runs.plain.reached[0].shape)
    words = example.described(pipe, family, len(runs.plain.told), size)
    return Diagnosis(name, words, tuple(found), tried, tuple(_notes(pipe, family)))


def _first_runs(pipe: Pipeline, family: Family, given: Mapping[str, Any]) -> tuple[Runs | None, Answer]:
    """The pipeline on the smallest inputs on which it runs by itself."""
    reason = "it makes no steps"
    for call in example.examples(pipe, family, given):
        try:
            runs = Runs(pipe, family, call)
        except RecordError as error:
            return None, (FAIL, _line(error))
        except Exception as error:  # whatever the pipeline says about arguments that it does not take
            reason = f"{type(error).__name__}: {_line(error)}"
            continue
        if runs.plain.finite() and runs.plain.calls and (runs.own is None or runs.own.finite()):
            return runs, (PASS, f"the pipeline runs by itself on {', '.join(sorted(call))}")
        steps, calls = len(runs.plain.told), len(runs.plain.calls)
        idle = f"it made {steps} steps and called its {family.denoiser} {calls} times"
        reason = f"its samples are not finite, and its weights are{_types(pipe, family)}" if steps and calls else idle
    return None, (
        FAIL,
        f"the pipeline itself does not run on what was made up for it: {reason}. Give the arguments of a call that "
        "works as doctor(pipe, call={...}), or in the record's `example`",
    )


def _types(pipe: Pipeline, family: Family) -> str:
    half = getattr(getattr(pipe, family.denoiser), "dtype", None) == torch.float16
    return ": numbers were too large for float16, try bfloat16 or float32" if half else ""


def _answer(check: Callable[[Runs], Answer], runs: Runs) -> Answer:
    try:
        return check(runs)
    except Exception as error:  # a wrong record can make anything happen, which is what is to be reported
        return FAIL, f"{type(error).__name__}: {_line(error)}"


def _report(runs: Runs) -> Answer:
    return PASS, str(runs.report)


def _rest(found: Sequence[Check], reason: str, rules: bool) -> tuple[Check, ...]:
    """The checks that were made, and all others as not made for this reason."""
    names = ("record", "components", "inputs", *CHECKS, *["rules"] * rules)
    made = {check.name for check in found}
    return (*found, *(Check(name, NOT_MADE, reason) for name in names if name not in made))


def _not_taken(pipe: Pipeline, family: Family) -> str:
    """A line that says which argument of the record the pipeline does not take; "" where it takes all."""
    takes = signature_of(pipe).parameters
    if any(one.kind is one.VAR_KEYWORD for one in takes.values()):
        return ""
    for field in ("guided", "unguided", "filled"):
        if wrong := [name for name in getattr(family, field) if name not in takes]:
            others = " and `owned`" * (field != "filled")
            return (
                f"`{field}`{others} of the record of {family.pipeline} name {wrong[0]!r}, which its __call__ does not "
                f"take{nearest(wrong[0], takes)}"
            )
    return ""


def _line(error: Exception) -> str:
    return " ".join(str(error).partition(" (all: ")[0].split())[:300]


def _record(name: str, family: Family) -> str:
    found = f"of {family.pipeline}"
    return found if name == family.pipeline else f"{found}, whose __call__ {name} inherits"


def _notes(pipe: Pipeline, family: Family) -> list[str]:
    notes = []
    if reason := family.cannot(pipe):
        notes.append(f"no guidance of its own: {reason}")
    if (embedded := family.embedded(pipe)) and not reason:
        notes.append(
            f"this network was distilled from guided runs and takes their scale as an input, {embedded}, which stays "
            "yours; rules guide on top of it"
        )
    if (blocks := architecture(denoisers_of(pipe, family)[0])).blocks:
        notes.append(f"blocks, as pag, seg, slg, tpg and s2 name them: {blocks.listed}; 'middle' is {blocks.middle}")
    if family.offset:
        notes.append(f"its own scale counts from 0: {family.scale}=s is cfg(s + {family.offset:g})")
    return notes


def unrecorded(name: str, cls: type | None, components: Iterable[str], rules: bool = True) -> Diagnosis:
    """The diagnosis of a pipeline without a record.

    Args:
        name: of its class.
        cls: the class, if it is at hand.
        components: names of what it has.
        rules: whether the rules were to be run.
    """
    derived = next((one.__name__ for one in cls.__mro__[1:] if one.__name__ in FAMILIES), "") if cls else ""
    start = derived or nearest_records(name, cls, components)[0]
    why = "whose __call__ it replaces" if derived else "by its package, its components and its arguments"
    reason = f"there is none for {name}; the nearest is that of {start}, {why}"
    steps = (
        f"enter a copy: register_family(dataclasses.replace(FAMILIES[{start!r}], pipeline={name!r})), where "
        "register_family is guidestack's and FAMILIES that of guidestack.pipelines.families.record",
        "then guidestack.doctor(pipe) names the fields that are wrong; docs/families.md says what each means",
    )
    return Diagnosis(name, "", _rest([Check("record", FAIL, reason)], "there is no record", rules), notes=steps)
