"""Runs of all stacks in one process, interleaved with the stock pipeline's, with a clock on every call of the network.

What a run costs has three parts: the calls of its network, what the stock pipeline does beside them (text, scheduler,
decoding), and what guidance adds. The first two are the model's. *Efficiency* is what the network's calls would cost by
themselves, over what they and guidance's addition did cost:

    efficiency = sum of bare(rows) / (sum of the calls' times + added)

over the calls of a run, where bare(rows) is the time of a call of the network with so many rows and nothing around it,
and added is the time outside of the calls less that of the stock pipeline. Rows that a rule could have spared, calls
that are slower than they need be, and arithmetic all lower it; text encoding and decoding do not.

The speed of a machine that others use drifts by more than what is looked for, so that whatever is compared was measured
within moments: a bare call right before or after one of the run, by a copy of the network that nothing is attached to,
and the stock pipeline right before and after a run. Times are medians, of calls over those with as many rows.
"""

from __future__ import annotations

import copy
import itertools
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ...pipelines.families.lookup import denoisers_of, family_of
from .timing import Spread

EVERY, FEW = 3, 10
"""Of so many calls of a run one has a bare call beside it; of runs with fewer steps each has."""


@dataclass
class Timed:
    """The times of one or more runs, and of their calls of the network.

    Attributes:
        whole: time of each run.
        ratios: of each over that of the stock pipeline's next to it.
        rest: time of each run outside of the network's calls.
        added: of each run, its rest less that of the stock pipeline's next to it.
        calls: times of the network's calls, by their rows.
        counts: calls of one run, by their rows.
        slowness: of a call of a run over a bare one beside it.
    """

    whole: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    rest: list[float] = field(default_factory=list)
    added: list[float] = field(default_factory=list)
    calls: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    counts: dict[int, int] = field(default_factory=dict)
    slowness: list[float] = field(default_factory=list)

    @property
    def rows(self) -> int:
        """Rows over all calls of a run: network evaluations."""
        return sum(rows * count for rows, count in self.counts.items())

    @property
    def network(self) -> float:
        """Time of the network's calls of a run."""
        return sum(count * statistics.median(self.calls[rows]) for rows, count in self.counts.items())

    @property
    def alone(self) -> float:
        """What the network's calls of the runs cost bare."""
        return self.network / statistics.median(self.slowness)


class Watched:
    """A pipeline whose denoiser's calls are timed.

    Args:
        pipe: the pipeline.
        clock: seconds.
        every: of so many calls one has a bare call beside it.
    """

    def __init__(self, pipe: Any, clock: Callable[[], float], every: int = EVERY) -> None:
        self.pipe, self.clock, self.every = pipe, clock, every
        self.family = family_of(pipe)
        self.seen: list[tuple[int, float]] = []
        self.slowness: list[float] = []
        self.aside = 0.0
        self.runs = 0

    @contextmanager
    def watching(self) -> Iterator[None]:
        """While the context lasts, calls are timed: inside of whatever hooks others put around them."""
        modules = denoisers_of(self.pipe, self.family)
        twins = [copy.deepcopy(module) for module in modules]
        for module, twin in zip(modules, twins, strict=True):
            module.forward = self._timed(module.forward, twin)
        try:
            yield
        finally:
            for module in modules:
                del module.forward

    def _timed(self, forward: Callable[..., Any], twin: Any) -> Callable[..., Any]:
        def bare(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            # Some networks take what is in their dictionaries and lists out of them.
            given = {name: copy.copy(value) if type(value) in (dict, list) else value for name, value in kwargs.items()}
            twin(*args, **given)

        def timed(*args: Any, **kwargs: Any) -> Any:
            place = len(self.seen) + self.runs
            # One finds the memory as the other left it: they take turns in being the first.
            beside, first = place % self.every == 0, place // self.every % 2 == 0
            times = [self.clock()]
            if beside and first:
                bare(args, kwargs)
                times.append(self.clock())
            output = forward(*args, **kwargs)
            times.append(self.clock())
            if beside and not first:
                bare(args, kwargs)
                times.append(self.clock())
            taken = [end - start for start, end in itertools.pairwise(times)]
            own = taken.pop(1 if beside and first else 0)
            self.seen.append((len(self._sample(args, kwargs)), own))
            for alone in taken:
                self.slowness.append(own / alone)
                self.aside += alone
            return output

        timed.remembers = False  # type: ignore[attr-defined]  # to guide(), which looks for patches that do
        return timed

    def _sample(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        names = self.family.positional
        return kwargs[self.family.sample] if self.family.sample in kwargs else args[names.index(self.family.sample)]

    def run(self, what: Callable[[], Any], into: Timed) -> float:
        """Run the pipeline and note the times; returns that of the whole without the bare calls."""
        self.seen, self.slowness, self.aside = [], [], 0.0
        self.runs += 1
        began = self.clock()
        what()
        whole = self.clock() - began - self.aside
        into.whole.append(whole)
        into.rest.append(whole - sum(seconds for _, seconds in self.seen))
        into.counts = dict(Counter(rows for rows, _ in self.seen))
        into.slowness += self.slowness
        for rows, seconds in self.seen:
            into.calls[rows].append(seconds)
        return whole


@dataclass(frozen=True)
class Found:
    """The measurements of one stack.

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
        took = {name: watched.run(sides[name], timed[name]) for name in group}
        after = watched.run(stock, reference)
        for name in group:
            # Over the mean of the stock runs around it: a drift of the machine's speed cancels.
            timed[name].ratios.append(2 * took[name] / (before + after))
            timed[name].added.append(timed[name].rest[-1] - sum(reference.rest[-2:]) / 2)
        before = after


def _found(one: Timed, reference: Timed, steps: int) -> Found:
    added = statistics.median(one.added)
    return Found(
        Spread.of(one.ratios),
        one.rows / reference.rows,
        one.alone / (one.network + added),
        one.alone / statistics.median(one.whole),
        added / steps,
        Spread.of(one.whole),
    )
