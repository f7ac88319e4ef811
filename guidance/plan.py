"""What a stack will ask for, before any network runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .prediction import EPSILON, Level, Prediction
from .query import POSITIVE, Predictions, Query, with_edits
from .rule import Stack
from .step import Estimate, Run, Step

SHAPE = (2, 1, 1, 1)  # as many axes as a sample has anywhere, and two numbers, of which a deviation can be taken


@dataclass(frozen=True)
class When:
    """One evaluation of a schedule.

    Args:
        step: step of the sampler that it belongs to, from 0.
        evaluation: 0 for the first evaluation of a step, 1 for the second one of Heun's method and its kind.
        level: level of the samples that the network is given.
        time: the network's time as a share of the training schedule, in [0, 1]; None where it is something else (EDM).
    """

    step: int
    evaluation: int
    level: Level
    time: float | None = None


@dataclass(frozen=True)
class Planned:
    """One evaluation of the stack.

    Attributes:
        when: where in the schedule.
        queries: what is evaluated for each sample; at most this, where a rule decides as it goes.
        asking: places in the stack of the rules that ask for something.
    """

    when: When
    queries: tuple[Query, ...]
    asking: frozenset[int]


def plan(
    stack: Stack, schedule: Sequence[When], negatives: int = 1, positives: int = 0, batch: int = 1
) -> list[Planned]:
    """What `stack` asks for at each evaluation of `schedule`.

    Args:
        stack: the stack.
        schedule: of the sampler.
        negatives: how many negative prompts a sample has.
        positives: how many it has beside its prompt.
        batch: samples.

    The negative prompt counts as one condition with the empty one: what `guide` evaluates where none is given. The
    stack's state is carried along on answers that are all 0, on which no rule finds a reason to stop early.
    """
    steps = max((when.step for when in schedule), default=0) + 1
    shape = (batch, *SHAPE)
    run = Run(shape, steps=steps, negatives=(negatives,) * batch, positives=(positives,) * batch, identity=None)
    state, planned, step_level = stack.init(run), [], None
    for when in schedule:
        step_level = when.level if when.evaluation == 0 or step_level is None else step_level
        step = Step(run, when.step, when.level, when.evaluation, step_level, when.time)
        each = [rule.queries(step, own) for rule, own in zip(stack.rules, state, strict=True)]
        queries = {POSITIVE, *(query for one in each for query in one)}
        if stack.unasked(step, state) is not None:  # a rule answers without any prediction
            queries.remove(POSITIVE)
        asking = frozenset(place for place, one in enumerate(each) if one)
        edits = stack.edits(step, state)
        edited = {with_edits(query, edits) for query in queries}
        planned.append(Planned(when, tuple(sorted(edited, key=str)), asking))
        zeros = torch.zeros(shape, dtype=torch.float32)
        nothing = Prediction(zeros, zeros, when.level, EPSILON)
        answers = Predictions(dict.fromkeys(queries, nothing), {query: query for query in queries}, nothing)
        state = stack.update(Estimate(nothing), answers, step, state)[1]
    return planned


def never_asking(stack: Stack, planned: Sequence[Planned]) -> list[int]:
    """Places of the rules that could ask for something and do so nowhere in the plan: outside their windows."""
    asking = frozenset().union(*(one.asking for one in planned))
    return [place for place, rule in enumerate(stack.rules) if rule.asks() and place not in asking]
