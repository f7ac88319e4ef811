"""What a stack will ask for, before any network runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .prediction import Level
from .query import POSITIVE, Query
from .rule import Run, Step
from .stack import Stack


@dataclass(frozen=True)
class Planned:
    """One evaluation of the stack.

    Attributes:
        index: step of the sampler.
        evaluation: evaluation within the step.
        level: level of the samples.
        queries: what is evaluated for each sample; at most this, where a rule decides as it goes.
    """

    index: int
    evaluation: int
    level: Level
    queries: tuple[Query, ...]


@dataclass(frozen=True)
class When:
    """One evaluation of a schedule.

    Args:
        index: step of the sampler.
        evaluation: evaluation within the step.
        level: level of the samples.
        time: the network's time as a share of its training schedule; None where the sampler has none.
    """

    index: int
    evaluation: int
    level: Level
    time: float | None = None


def plan(stack: Stack, schedule: Sequence[When]) -> list[Planned]:
    """What `stack` asks for at each evaluation of `schedule`.

    The negative prompt counts as one condition with the empty one: what `guide` evaluates where none is given.
    """
    run = Run(shape=(1,), steps=max((when.index for when in schedule), default=0) + 1)
    state, planned, step_level = stack.init(run), [], None
    for when in schedule:
        index, evaluation, level = when.index, when.evaluation, when.level
        step_level = level if evaluation == 0 or step_level is None else step_level
        queries = stack.queries(Step(run, index, level, evaluation, step_level, when.time), state)
        planned.append(Planned(index, evaluation, level, tuple(sorted({POSITIVE, *queries}, key=str))))
    return planned
