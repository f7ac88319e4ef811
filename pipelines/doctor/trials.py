"""Which rules run on a pipeline, and why others do not: each is run."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from ...guidance.errors import GuidestackError, RuleError, StackSyntaxError, reason
from ...guidance.notation import registry
from ...guidance.notation.text import parse
from ...guidance.rules.linear_ag import fit as linear
from ..families.record import Family, Pipeline
from ..guide import guide
from ..session import model_identity
from .diagnosis import Trial

FITTED = "linear_ag"
"""The rule that needs more than a pipeline."""


def trials(
    pipe: Pipeline,
    family: Family,
    arguments: Callable[[], dict[str, Any]],
    networks: Mapping[str, Any] | None = None,
) -> Iterator[Trial]:
    """Every rule of the registry on a pipeline: its examples, or without arguments where it has none.

    Args:
        pipe: the pipeline.
        family: its record.
        arguments: makes fresh arguments of a guided call.
        networks: as in `guide`.
    """
    for entry in registry.rules():
        if entry.name == FITTED:
            yield from fitted(pipe, family, arguments)
            continue
        for text in entry.examples or (f"{entry.name}()",):
            yield trial(pipe, text, arguments, networks)


def fitted(pipe: Pipeline, family: Family, arguments: Callable[[], dict[str, Any]]) -> Iterator[Trial]:
    """`linear_ag` on a pipeline: with guidestack's own coefficients where they are this model's."""
    if why := family.cannot(pipe):
        yield Trial(FITTED, None, f"it estimates an unconditional prediction, of which there is none: {why}")
        return
    if family.encode is None:
        yield Trial(
            FITTED, None, "needs coefficients fitted on this model, and fit-linear-ag takes models with prompts"
        )
        return
    model = model_identity(pipe, family)
    fits = {name: linear.read(linear.locate(name)) for name in linear.names()}
    ours = {name: fit for name, fit in fits.items() if fit.valid.get("model") == model}
    for name, fit in ours.items():
        # They are of runs of so many steps without a negative prompt.
        call = {key: value for key, value in arguments().items() if not key.startswith("negative_")}
        call["num_inference_steps"] = fit.steps
        yield trial(pipe, f"linear_ag({fit.rule}, coefficients={name!r})", partial(dict, call))
    if not ours:
        yield Trial(FITTED, None, "needs coefficients fitted on this model: guidestack fit-linear-ag")


def trial(
    pipe: Pipeline, rule: str, arguments: Callable[[], dict[str, Any]], networks: Mapping[str, Any] | None = None
) -> Trial:
    """One rule on a pipeline, given by its text."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            parse(rule)
        except (StackSyntaxError, RuleError) as error:
            return Trial(rule, None, f"was not tried: {error}")
        try:
            guided = guide(pipe, rule, networks=networks)
            guided(**arguments())
        except GuidestackError as error:
            told = str(error).partition(" (all: ")[0].replace(f"{rule} ", "it ")
            return Trial(rule, None, told.replace(type(pipe).__name__, "it"))
        except Exception as error:  # whatever a wrong record makes the pipeline raise
            return Trial(rule, None, f"breaks: {type(error).__name__}: {reason(error)}", broken=True)
    report = guided.report
    assert report is not None  # the call ended
    steps = Counter[int]()
    for record in report.steps:  # with the turns of a step
        steps[record.index] += max(record.evaluations(report.batch))
    return Trial(rule, max(steps.values()))
