"""What a stack will ask for, before any network runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .keyed import Keys
from .notebook import MAX_STEPS, table
from .prediction import EPSILON, Level, Parameterization
from .query import Evaluation, Network, Query, Request
from .rule import Rule, Stack
from .run import GuidedRun
from .step import Estimate, Run, Step
from .words import counted

SHAPE = (2, 1, 1, 1)  # as many axes as a sample has anywhere, and two numbers, of which a deviation can be taken


@dataclass(frozen=True)
class SchedulePoint:
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
    """One evaluation of the stack, or of a turn that one of its rules takes before it.

    Attributes:
        when: where in the schedule.
        queries: what is evaluated for each sample; at most this, where a rule decides as it goes.
        asking: places in the stack of the rules that ask for something.
        turn: 0 for the sampler's own evaluation, else which of the turns before it.
    """

    when: SchedulePoint
    queries: tuple[Query, ...]
    asking: frozenset[int]
    turn: int = 0

    @property
    def place(self) -> str:
        """The step, with the evaluation in it that is not the first, and the turn: ``"3"``, ``"3.1"``, ``"3 t1"``."""
        evaluation = f".{self.when.evaluation}" if self.when.evaluation else ""
        return f"{self.when.step}{evaluation}{f' t{self.turn}' if self.turn else ''}"

    def __str__(self) -> str:
        """A line of the table that `Plan` writes."""
        asked = ", ".join(map(str, self.queries))
        return f"{self.place:>6} {self.when.level.k_sigma:>12.4g}  {len(self.queries):>11}  {asked}"


class Plan(list[Planned]):
    """What a stack asks for at each evaluation of a schedule. ``str`` is a table of it; a notebook shows one too.

    Args:
        stack: the stack.
        planned: the evaluations of the stack, in order.
    """

    HEAD = f"{'step':>6} {'sigma/alpha':>12}  {'evaluations':>11}  queries"

    def __init__(self, stack: Stack, planned: Iterable[Planned]) -> None:
        super().__init__(planned)
        self.stack = stack

    @property
    def evaluations(self) -> int:
        """Network evaluations of a sample; the most that there can be if `at_most`."""
        return sum(len(one.queries) for one in self)

    @property
    def at_most(self) -> bool:
        """Whether a rule decides as it goes, so that a run may take fewer evaluations."""
        return any(part.data_dependent for part in self.stack.parts())

    @property
    def unguided(self) -> int:
        """Network evaluations of a sample without guidance: the sampler's own."""
        return sum(not one.turn for one in self)

    @property
    def cost(self) -> str:
        """The evaluations of a sample in words."""
        return f"{'at most ' if self.at_most else ''}{counted(self.evaluations, 'evaluation')} a sample"

    def __str__(self) -> str:
        return "\n".join([f"{self.stack}: {self.cost}; unguided: {self.unguided}", self.HEAD, *map(str, self)])

    def _repr_html_(self) -> str:
        """The table, for notebooks."""
        rows = [
            (one.place, f"{one.when.level.k_sigma:.4g}", str(len(one.queries)), ", ".join(map(str, one.queries)))
            for one in self[:MAX_STEPS]
        ]
        more = f"and {len(self) - MAX_STEPS} more" if len(self) > MAX_STEPS else ""
        heads = ("step", "sigma/alpha", "evaluations", "queries")
        return table(f"{self.stack}: {self.cost}; unguided: {self.unguided}", heads, rows, more)


def plan(
    stack: Stack, schedule: Sequence[SchedulePoint], negatives: int = 1, positives: int = 0, batch: int = 1
) -> Plan:
    """What `stack` asks for at each evaluation of `schedule`, in order, with the turns of its rules.

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
    shape, seeds = (batch, *SHAPE), tuple(range(batch))
    about = Run(shape, torch.float32, steps=steps, seeds=seeds, negatives=(negatives,) * batch)
    run = _Imagined(stack, replace(about, positives=(positives,) * batch, identity=None), moves=True)
    x, planned, loop = torch.zeros(shape, dtype=torch.float32), [], _Nowhere(schedule)
    for place, when in enumerate(schedule):
        after = next((one.level for one in schedule[place:] if one.step != when.step), None)
        at = when.step, when.level, when.evaluation, when.time, after, level_before(schedule, place)
        done, step = len(run.report.steps), run.step(*at)
        moved = run.moved(loop, x, step)
        each = [rule.queries(step, own) for rule, own in zip(stack.rules, run.state, strict=True)]
        asking = frozenset(place for place, one in enumerate(each) if one)
        run.estimate(_Zeros(moved), moved, *at)
        for record in run.report.steps[done:]:
            queries = tuple(sorted((query for query, rows in record.queries.items() if rows), key=str))
            planned.append(Planned(when, queries, asking, record.turn))
    return Plan(stack, planned)


def check_emission(stack: Stack, emits: Parameterization, steps: int) -> None:
    """Refuse a stack with a rule that is not for such a network or such a run, as its first step would.

    Args:
        stack: the stack.
        emits: what the network emits.
        steps: of the sampler.

    Raises:
        RuleError: naming the rule.
    """
    stack.init(Run((1, *SHAPE), steps=steps, seeds=(0,), negatives=(1,), identity=None, emits=emits))


def level_before(schedule: Sequence[SchedulePoint], place: int, begin: int = 0) -> Level | None:
    """The level at which the step before began, of an evaluation of a run; None in the run's first step.

    Args:
        schedule: of the sampler.
        place: of the evaluation in it.
        begin: place of the first evaluation of the run.
    """
    return next((one.level for one in schedule[begin:place] if one.step == schedule[place].step - 1), None)


class _Imagined(GuidedRun):
    """A run on predictions of 0, for what its stack asks for; its samples mean nothing."""

    def _watch(self, step: Step, done: Evaluation, estimate: Estimate) -> None:
        """Skip the check for NaN and Inf, which samples that mean nothing may have."""


class _Zeros(Network):
    """A network that answers every query with zeros."""

    parameterization = EPSILON

    def __init__(self, x: Tensor) -> None:
        self.x = x
        self.conditions: list[str] = ["positive"]

    def tracked(self, x: Tensor) -> Tensor:
        """Return `x` as it is: no gradient is taken."""
        return x

    def resolve(self, query: Query) -> Query:
        """Return the query as it is; any condition is accepted."""
        if query.condition not in self.conditions:
            self.conditions.append(query.condition)
        return query

    def run(self, requests: Sequence[Request]) -> list[Tensor]:
        """Return zeros for each request."""
        return [torch.zeros_like(self.x if one.rows is None else self.x[list(one.rows)]) for one in requests]


class _Nowhere:
    """The loop of a plan: its network answers with zeros, and its steps leave samples as they are."""

    def __init__(self, schedule: Sequence[SchedulePoint]) -> None:
        self.schedule = schedule

    def network(self, x: Tensor, level: Level, keys: Keys) -> Network:
        """Return a network that answers with zeros."""
        return _Zeros(x)

    def stepped(self, x: Tensor, estimate: Estimate, keys: Keys, ahead: int = 0) -> Tensor:
        """Return the samples as they are."""
        return x

    def later(self, step: Step, ahead: int) -> Step:
        """Return the position `ahead` steps later."""
        when = next(one for one in self.schedule if one.step == step.index + ahead)
        return replace(step, index=when.step, level=when.level, step_level=when.level, time=when.time)


def remembering(stack: Stack) -> Rule | None:
    """The first rule of a stack that carries anything from one evaluation of a run to the next; None where none does.

    Looked for over five levels, on answers that are all 0: a rule may begin to remember at its first evaluation.
    """
    run = _Imagined(stack, Run((1, *SHAPE), steps=5, seeds=(0,), negatives=(1,), identity=None))
    x = torch.zeros((1, *SHAPE), dtype=torch.float32)
    held = [holds(state) for state in run.state]
    for index in range(5):
        run.estimate(_Zeros(x), x, index, Level.vp(1 / (1 + 10.0 ** (4 - 2 * index))))
        held = [before or holds(state) for before, state in zip(held, run.state, strict=True)]
    return next((rule for rule, some in zip(stack.rules, held, strict=True) if some), None)


def holds(state: Any) -> bool:
    """Whether a rule's state holds anything."""
    return any(map(holds, state)) if isinstance(state, tuple) else True


def never_asking(stack: Stack, planned: Sequence[Planned]) -> list[int]:
    """Places of the rules that could ask for something and do so nowhere in the plan: outside their windows."""
    asking = frozenset().union(*(one.asking for one in planned))
    return [place for place, rule in enumerate(stack.rules) if rule.asks() and place not in asking]
