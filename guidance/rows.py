"""Several stacks in one batch, each for samples of its own: what lets a sweep fill the network with unlike cells."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from .errors import RuleError
from .prediction import Prediction
from .query import POSITIVE, Predictions, Queries, Query, RowMask, sent, united
from .rule import Estimate, Rule, Run, State, Step
from .stack import Stack

Index = slice | list[int]


@dataclass(frozen=True)
class EachRow(Rule):
    """Sample i under ``stacks[rows[i]]``. Internal: it has no name in text, and no other rule stands beside it.

    A stack sees its own samples only, as a run of their number: what it answers for a sample, and what that costs, is
    what it does in a run by itself.

    Args:
        stacks: different stacks, which renoise all or none: what a sampler steps with is decided for a whole batch.
        rows: for each sample, the place of its stack. Samples of one stack beside one another are not copied.

    Queries: the union, each for the samples whose stacks ask for it.

    State: that of each stack. Traces: those of each stack, NaN for the samples of the others.

    Raises:
        RuleError: a row names no stack, a stack has no rows, or only some of the stacks renoise.
    """

    whole_stack: ClassVar[bool] = True

    stacks: tuple[Stack, ...]
    rows: tuple[int, ...]

    def __post_init__(self) -> None:
        if set(self.rows) != set(range(len(self.stacks))):
            raise RuleError(f"EachRow: rows {self.rows} must name each of {len(self.stacks)} stacks, and no others")
        if len({(stack.renoises, stack.guides_history) for stack in self.stacks}) > 1:
            raise RuleError(f"EachRow: not all of {self} renoise in one way; put them into batches of their own")

    def __str__(self) -> str:
        return " / ".join(map(str, self.stacks))

    @property
    def renoises(self) -> bool:
        """Whether the stacks do."""
        return self.stacks[0].renoises

    @property
    def contrast(self) -> Query | None:
        """That of all stacks, where it is the same."""
        contrasts = {stack.contrast for stack in self.stacks}
        return contrasts.pop() if len(contrasts) == 1 else None

    @property
    def skips(self) -> bool:
        """Whether one of the stacks does."""
        return any(stack.skips for stack in self.stacks)

    def samples(self, place: int) -> list[int]:
        """The samples of the stack at `place`."""
        return [sample for sample, its in enumerate(self.rows) if its == place]

    def _index(self, place: int) -> Index:
        samples = self.samples(place)
        first, last = samples[0], samples[-1]
        return slice(first, last + 1) if len(samples) == last + 1 - first else samples

    def _run(self, run: Run, place: int) -> Run:
        """The run of the samples of one stack."""
        if run.batch != len(self.rows):
            raise RuleError(f"EachRow is for a batch of {len(self.rows)} samples, and this run has {run.batch}")
        samples = self.samples(place)

        def own(values: Sequence[int]) -> tuple[int, ...]:
            return tuple(values[sample] for sample in samples) if values else ()

        return dataclasses.replace(
            run,
            shape=(len(samples), *run.shape[1:]),
            seeds=own(run.seeds),
            negatives=own(run.negatives),
            positives=own(run.positives),
        )

    def _step(self, step: Step, place: int) -> Step:
        return dataclasses.replace(step, run=self._run(step.run, place))

    def init(self, run: Run) -> State:
        """The state of each stack."""
        return tuple(stack.init(self._run(run, place)) for place, stack in enumerate(self.stacks))

    def asks(self) -> frozenset[Query]:
        """Whatever any of the stacks may ask for."""
        return frozenset().union(*(stack.asks() for stack in self.stacks))

    def queries(self, step: Step, state: State) -> Queries:
        """What each stack asks for, for its own samples."""
        return united(self._asked(step, state, place) for place in range(len(self.stacks)))

    def _asked(self, step: Step, state: State, place: int) -> Queries:
        own = self.stacks[place].queries(self._step(step, place), state[place])
        return {query: self._mask(place, rows) for query, rows in own.items()}

    def _mask(self, place: int, rows: RowMask | None) -> RowMask:
        """Some samples of a stack, or all, as samples of the batch."""
        mask = torch.zeros(len(self.rows), dtype=torch.bool)
        mask[torch.tensor(self.samples(place))] = True if rows is None else rows.cpu()
        return mask

    def unasked(self, step: Step, state: State) -> RowMask | None:
        """The samples that their stacks need no prediction for."""
        found = None
        for place, stack in enumerate(self.stacks):
            if stack.skips and (rows := stack.unasked(self._step(step, place), state[place])) is not None:
                mask = self._mask(place, rows)
                found = mask if found is None else found | mask
        return found

    def away(self, predictions: Predictions, step: Step, state: State) -> tuple[Prediction, RowMask | None] | None:
        """What each stack leads away from, for its samples."""
        base, parts = predictions[POSITIVE], []
        led = torch.zeros(len(self.rows), dtype=torch.bool)
        for place, stack in enumerate(self.stacks):
            own_step = self._step(step, place)
            own = self._own(predictions, base, place, {POSITIVE: None, **stack.queries(own_step, state[place])})
            found = stack.away(own, own_step, state[place])
            parts.append((own[POSITIVE] if found is None else found[0]).native)
            if found is not None:
                led |= self._mask(place, found[1])
        if not led.any():
            return None
        return Prediction(self._joined(parts), base.x, base.level, base.parameterization), led

    def _own(self, predictions: Predictions, base: Prediction, place: int, asked: Queries) -> Predictions:
        """The answers for the samples of one stack, which it asked for."""
        index, stack = self._index(place), self.stacks[place]
        own_base, answers = _taken(base, index), {}
        for query in asked:
            answer = predictions[query]
            answers[query] = own_base if answer is base else _taken(answer, index)
        return Predictions(answers, {query: query for query in asked}, own_base, stack)

    def update(self, estimate: Estimate, predictions: Predictions, step: Step, state: State) -> tuple[Estimate, State]:
        """The update of each stack, on its own samples."""
        base, parts, states = estimate.prediction, [], []
        for place, stack in enumerate(self.stacks):
            own_step = self._step(step, place)
            own = self._own(predictions, base, place, stack.queries(own_step, state[place]))
            own_base = _taken(base, self._index(place))
            after, own_state = stack.update(Estimate(own_base), own, own_step, state[place])
            parts.append(after)
            states.append(own_state)
        return self._merged(parts, base), tuple(states)

    def _joined(self, parts: Sequence[Tensor]) -> Tensor:
        """What the stacks have for their samples, in the order of the batch."""
        order = [sample for place in range(len(parts)) for sample in self.samples(place)]
        joined = torch.cat(list(parts))
        if order == sorted(order):
            return joined
        return joined[sent(sorted(range(len(order)), key=order.__getitem__), joined.device)]

    def _merged(self, parts: Sequence[Estimate], base: Prediction) -> Estimate:
        def prediction(each: Sequence[Prediction]) -> Prediction:
            native = self._joined([one.native for one in each])
            return Prediction(native, base.x, base.level, base.parameterization)

        renoise = None
        if any(part.renoise is not None for part in parts):
            renoise = prediction([part.renoise or part.prediction for part in parts])
        traces = {}
        for name in dict.fromkeys(name for part in parts for name in part.traces):
            known = next(part.traces[name] for part in parts if name in part.traces)
            each = [_traced(part.traces, name, len(part.prediction.native), known) for part in parts]
            traces[name] = self._joined(each)
        return Estimate(prediction([part.prediction for part in parts]), renoise, traces)


def _taken(prediction: Prediction, index: Index) -> Prediction:
    """The prediction for some samples."""

    def taken(value: Tensor) -> Tensor:
        return value[index] if isinstance(index, slice) else value[sent(index, value.device)]

    return Prediction(taken(prediction.native), taken(prediction.x), prediction.level, prediction.parameterization)


def _traced(traces: Mapping[str, Any], name: str, count: int, like: Tensor) -> Tensor:
    if name in traces:
        return traces[name]  # type: ignore[no-any-return]
    return torch.full((count,), torch.nan, dtype=like.dtype, device=like.device)
