"""The argument of a run's observer: each evaluation, with all answers, the estimate and the state."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from .prediction import Level
from .query import Predictions
from .rule import Rule
from .step import Estimate, State, Step


@dataclass(frozen=True, eq=False)
class Seen:
    """One evaluation of a stack, after its update.

    Attributes:
        stack: the stack.
        step: where the run stands.
        state: the stack's state before the update.
        predictions: all answers of this evaluation; rows that nobody asked for read as the prompt's.
        estimate: the estimate that the sampler steps with.
        after: level at the end of the sampler's step; None where it is not known.
    """

    stack: Rule
    step: Step
    state: State
    predictions: Predictions
    estimate: Estimate
    after: Level | None = None


Observer = Callable[[Seen], Mapping[str, Tensor]]
"""Told of each evaluation; what it returns, by name one number a sample, is kept in the report's `observed`. It changes
nothing of the run, and costs no network evaluation: it cannot ask for one."""
