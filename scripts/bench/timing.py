"""Timing on a machine whose speed drifts: runs of all sides interleaved, each compared with its neighbours."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Spread:
    """Several measurements of one thing."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of `values`, one at least."""
        return cls(min(values), statistics.median(values), max(values))

    def __str__(self) -> str:
        return f"{self.median:.3f} ({self.low:.3f} to {self.high:.3f})"


@dataclass(frozen=True)
class Timing:
    """One side of a comparison.

    Args:
        seconds: wall time of a run.
        ratio: the same over the reference's.
    """

    seconds: Spread
    ratio: Spread


def interleaved(
    reference: Callable[[], Any],
    sides: Mapping[str, Callable[[], Any]],
    repeats: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Time every side against the reference, which runs before and after each of them.

    A ratio is a side's time over the mean of the two reference runs around it, so that a drift of the machine's speed
    cancels. Everything runs once before, untimed.

    Args:
        reference: what the sides are compared with.
        sides: by name.
        repeats: rounds; the median over them is the figure.
        clock: seconds.
    """

    def timed(run: Callable[[], Any]) -> float:
        began = clock()
        run()
        return clock() - began

    for run in (reference, *sides.values()):
        run()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    ratios: dict[str, list[float]] = {name: [] for name in sides}
    before = timed(reference)
    for repeat in range(repeats):
        # To and fro, so that no side always follows the same one: caches remember who was there.
        for name in list(sides)[:: -1 if repeat % 2 else 1]:
            taken = timed(sides[name])
            after = timed(reference)
            seconds[name].append(taken)
            ratios[name].append(2 * taken / (before + after))
            before = after
    return {name: Timing(Spread.of(seconds[name]), Spread.of(ratios[name])) for name in sides}
