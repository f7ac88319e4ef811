"""Which rules run on a pipeline, and why others do not: each is run."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

from ...guidance import registry
from ...guidance.errors import GuidestackError, RuleError, StackSyntaxError
from ...guidance.text import parse
from ..family import Pipeline
from ..guide import guide
from .diagnosis import Trial

EXAMPLES: dict[str, tuple[str, ...]] = {
    "cfg": ("cfg(3)", "cfg(3, against='null')"),
    "rescale": ("cfg(3) | rescale(0.7)",),
    "apg": ("apg(3)",),
    "adaptive": ("adaptive(cfg(3))",),
    "cfgpp": ("cfgpp(0.6)",),
    "perpneg": ("perpneg(3)",),
    "icg": ("icg(3)", "icg(3, source='gaussian')", "icg(3, source='class')"),
    "tsg": ("tsg(3)",),
    "during": ("during(cfg(3), progress=(0, 0.5))",),
    "prefix": ("prefix(cfg(3), 1)",),
    "schedule": ("schedule(cfg(3), 'g r*')", "schedule(cfg(3), 'g s*')"),
    "renorm": ("cfg(3) | renorm()",),
    "renoise": ("cfg(3) | renoise()",),
}
"""Stacks to try for each rule of the registry; others are tried without arguments."""
FITTED = {"linear_ag": "needs coefficients fitted on this model: guidestack fit-linear-ag"}
"""Rules that need more than a pipeline."""


def trials(pipe: Pipeline, arguments: Callable[[], dict[str, Any]]) -> Iterator[Trial]:
    """Every rule of the registry on a pipeline.

    Args:
        pipe: the pipeline.
        arguments: makes fresh arguments of a guided call.
    """
    names = [entry.name for entry in registry.rules()]
    for name in sorted(names, key=[*EXAMPLES, *names].index):  # ours first, those that others have registered after
        if name in FITTED:
            yield Trial(name, None, FITTED[name])
            continue
        for text in EXAMPLES.get(name, (f"{name}()",)):
            yield trial(pipe, text, arguments)


def trial(pipe: Pipeline, rule: str, arguments: Callable[[], dict[str, Any]]) -> Trial:
    """One rule on a pipeline, given by its text."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            parse(rule)
        except (StackSyntaxError, RuleError) as error:
            return Trial(rule, None, f"was not tried: {error}")
        try:
            guided = guide(pipe, rule)
            guided(**arguments())
        except GuidestackError as error:
            reason = str(error).partition(" (all: ")[0].replace(f"{rule} ", "it ")
            return Trial(rule, None, reason.replace(type(pipe).__name__, "it"))
        except Exception as error:  # whatever a wrong record makes the pipeline raise
            return Trial(rule, None, f"breaks: {type(error).__name__}: {_line(error)}", broken=True)
    report = guided.report
    assert report is not None  # the call ended
    return Trial(rule, max(report.steps[0].evaluations(report.batch)))  # adaptive guidance may stop after it


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
