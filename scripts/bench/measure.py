"""Runs of all stacks in one process, interleaved with the stock pipeline's, with a clock on every call of the network.

What a run costs has three parts: the calls of its network, what the stock pipeline does beside them (text, scheduler,
decoding), and what guidance adds. The first two are the model's. *Efficiency* is what the network's calls would cost by
themselves, over what they and guidance's addition did cost:

    efficiency = sum of bare(rows) / (sum of the calls' times + added)

over the calls of a run, where bare(rows) is the time of a call of the network with so many rows and nothing around it,
measured right before and after the stack's own runs, and added is the time outside of the calls less that of the stock
pipeline. Rows that a rule could have spared, calls that are slower than they need be, and arithmetic all lower it; text
encoding and decoding do not. Times are medians over all calls with as many rows.
"""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from ...pipelines.family import denoisers_of, family_of
from .timing import Spread

BARE = 2
"""Bare calls before a run, and as many after it: a machine's speed drifts within a round."""


@dataclass
class Timed:
    """One or more runs.

    Attributes:
        whole: time of each run.
        ratios: of each over that of the stock pipeline's next to it.
        rest: time of each run outside of the network's calls.
        calls: times of the network's calls, by their rows.
        counts: calls of one run, by their rows.
        bare: times of bare calls next to the runs, by their rows.
    """

    whole: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    rest: list[float] = field(default_factory=list)
    calls: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    counts: dict[int, int] = field(default_factory=dict)
    bare: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))

    @property
    def rows(self) -> int:
        """Rows over all calls of a run: network evaluations."""
        return sum(rows * count for rows, count in self.counts.items())

    @property
    def network(self) -> float:
        """Time of the network's calls of a run."""
        return self._summed(self.calls)

    @property
    def alone(self) -> float:
        """What these calls cost bare."""
        return self._summed(self.bare)

    def _summed(self, times: Mapping[int, Sequence[float]]) -> float:
        return sum(count * statistics.median(times[rows]) for rows, count in self.counts.items())


class Watched:
    """A pipeline whose denoiser's calls are timed.

    Args:
        pipe: the pipeline.
        clock: seconds.
    """

    def __init__(self, pipe: Any, clock: Callable[[], float]) -> None:
        self.pipe, self.clock = pipe, clock
        self.family = family_of(pipe)
        self.seen: list[tuple[int, float]] = []
        self.last: tuple[Any, tuple[Any, ...], dict[str, Any]] | None = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """While the context lasts, calls are timed: inside of whatever hooks others put around them."""
        modules = denoisers_of(self.pipe, self.family)
        for module in modules:
            module.forward = self._timed(module, module.forward)
        try:
            yield
        finally:
            for module in modules:
                del module.forward

    def _timed(self, module: Any, forward: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            began = self.clock()
            output = forward(*args, **kwargs)
            self.seen.append((len(self._sample(args, kwargs)), self.clock() - began))
            self.last = module, args, kwargs
            return output

        return timed

    def _sample(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        names = self.family.positional
        return kwargs[self.family.sample] if self.family.sample in kwargs else args[names.index(self.family.sample)]

    def run(self, what: Callable[[], Any], into: Timed) -> float:
        """Run, and note the times; returns that of the whole."""
        self.seen = []
        began = self.clock()
        what()
        whole = self.clock() - began
        into.whole.append(whole)
        into.rest.append(whole - sum(seconds for _, seconds in self.seen))
        into.counts = dict(Counter(rows for rows, _ in self.seen))
        for rows, seconds in self.seen:
            into.calls[rows].append(seconds)
        return whole

    def bare_calls(self, into: Timed) -> None:
        """Time bare calls with the rows of a run, and note them."""
        for rows in into.counts:
            into.bare[rows].extend(self.bare(rows) for _ in range(BARE))

    @torch.no_grad()
    def bare(self, rows: int) -> float:
        """Time of one call of the network with so many rows, and nothing around it."""
        assert self.last is not None  # somebody ran before
        module, args, kwargs = self.last
        names = (self.family.sample, *self.family.rows)
        batch = len(self._sample(args, kwargs))
        order = torch.arange(rows) % batch
        given = [_taken(value, order, batch) if name in names else value for name, value in _named(self.family, args)]
        named = {name: _taken(value, order, batch) if name in names else value for name, value in kwargs.items()}
        began = self.clock()
        type(module).forward(module, *given, **named)
        return self.clock() - began


def _named(family: Any, args: Sequence[Any]) -> list[tuple[str, Any]]:
    return list(zip(family.positional, args, strict=False))


def _taken(value: Any, order: torch.Tensor, batch: int) -> Any:
    if isinstance(value, torch.Tensor) and value.ndim and len(value) == batch:
        return value[order.to(value.device)]
    return value


@dataclass(frozen=True)
class Found:
    """What was measured of one stack.

    Args:
        time_ratio: time over the stock pipeline's.
        evaluation_ratio: rows over the stock pipeline's.
        efficiency: as the module says.
        share: what the calls would cost by themselves over the time of a whole run, text and decoding included.
        added: seconds that guidance adds outside of the network, for each step.
        seconds: of a run.
    """

    time_ratio: Spread
    evaluation_ratio: float
    efficiency: float
    share: float
    added: float
    seconds: Spread


def measured(
    watched: Watched,
    stock: Callable[[], Any],
    sides: Mapping[str, Callable[[], Any]],
    steps: int,
    rounds: int,
    apart: int = 1,
    go_on: Callable[[], bool] = lambda: True,
) -> tuple[dict[str, Found], int]:
    """Measure every side against the stock pipeline. Each has run before, so that caches are full.

    Args:
        watched: the pipeline.
        stock: a run of it with its own guidance.
        sides: runs of it under each stack, by name.
        steps: of a run.
        rounds: at most; the medians over them are the figures.
        apart: sides between two runs of the stock pipeline.
        go_on: whether there is time for another round; the first is made in any case.

    Returns:
        What was found, by name, and the rounds that were made.
    """
    reference, timed = Timed(), {name: Timed() for name in sides}
    with watched.watching():
        watched.run(stock, Timed())  # it has not
        made = 0
        while made < rounds and (not made or go_on()):
            _round(watched, stock, sides, reference, timed, apart, backwards=made % 2 == 1)
            made += 1
    return {name: _found(one, reference, steps) for name, one in timed.items()}, made


def _round(
    watched: Watched,
    stock: Callable[[], Any],
    sides: Mapping[str, Callable[[], Any]],
    reference: Timed,
    timed: Mapping[str, Timed],
    apart: int,
    backwards: bool,
) -> None:
    # To and fro, so that no side always follows the same one: caches remember who was there.
    names = list(sides)[:: -1 if backwards else 1]
    before = watched.run(stock, reference)
    for start in range(0, len(names), apart):
        group = names[start : start + apart]
        took = {}
        for name in group:
            one = timed[name]
            watched.bare_calls(one)  # none in the first round, which does not know yet what it calls
            took[name] = watched.run(sides[name], one)
            watched.bare_calls(one)
        after = watched.run(stock, reference)
        for name in group:
            # Over the mean of the stock runs around it: a drift of the machine's speed cancels.
            timed[name].ratios.append(2 * took[name] / (before + after))
        before = after


def _found(one: Timed, reference: Timed, steps: int) -> Found:
    added = statistics.median(one.rest) - statistics.median(reference.rest)
    return Found(
        Spread.of(one.ratios),
        one.rows / reference.rows,
        one.alone / (one.network + added),
        one.alone / statistics.median(one.whole),
        added / steps,
        Spread.of(one.whole),
    )
