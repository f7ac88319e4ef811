r"""Matched strength: methods as curves over how hard they guide, compared where they guide equally hard.

A method that only guides harder wins on whatever likes guidance. So a method is a curve: for each value of its scale a
point, at the mean *effective scale* that was measured there (`traces`), whatever scale was written. Two methods are
compared at the effective scales that both have reached, and at equal evaluations. There is no extrapolation.

* Between points a curve is a straight line. How far a shape-preserving cubic through the same points is from it counts
  against every verdict: of a curve that bends, the line is not known any better.
* A scale that does not guide harder than the one before is pooled with it (to the mean of both, as isotonic regression
  does), so that a curve has one value at each effective scale. Equal effective scales are the same case.
* A method with several numbers of steps is one curve for each. Two methods are compared at the greatest cost that both
  reach at an effective scale, in network evaluations; between two numbers of steps the value is interpolated over cost.
  Effective scales at which they have no cost in common are left out; if they have none anywhere (within `EQUAL`), they
  are compared as they are, and the costs are part of what is said.

What is uncertain is the prompts: replicates draw prompts, the same ones for all cells of all methods, so that what
prompts have in common cancels in differences. For means they are bootstrap draws; for metrics of sets what is left
without one group of prompts after the other (the jackknife), for the reasons in `intervals`. From the replicates come

* bands of curves: pointwise, 95% at each effective scale by itself;
* bands of differences: simultaneous, 95% for all effective scales of one comparison together (the greatest deviation in
  standard errors, which replaces Student's quantile; of the jackknife's few replicates by sums of all of them with
  normal weights, which have their covariance). One method *dominates* over a range if the whole band is on one
  side there, by more than the interpolation is uncertain. Several comparisons, of several metrics or pairs, are not
  corrected for one another.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator
from scipy.optimize import isotonic_regression
from scipy.special import ndtr

from ..statistics import EQUAL, FEWEST, GROUPS, LEVEL, dealt, student

GRID = 41  # effective scales at which two curves are compared
DRAWS = 1000

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Replicates:
    """Draws of prompts from which intervals are computed.

    Args:
        draws: for each replicate the places of its prompts.
        scale: by which a replicate's deviation is to be multiplied.
        prompts: how many there are.
        units: that vary by themselves: prompts, or groups of them.
        left_out: whether each replicate is the whole without one group.
    """

    draws: tuple[Ints, ...]
    scale: float
    prompts: int
    units: int
    left_out: bool = False

    @classmethod
    def bootstrap(cls, prompts: int, draws: int = DRAWS, seed: int = 0) -> Replicates:
        """Replicates that draw prompts with replacement, for means."""
        generator = np.random.default_rng((seed, prompts))
        rows = generator.integers(prompts, size=(draws, prompts))
        return cls(tuple(rows), math.sqrt(prompts / max(1, prompts - 1)), prompts, prompts)

    @classmethod
    def jackknife(cls, prompts: int, groups: int = GROUPS, seed: int = 0) -> Replicates:
        """Replicates that leave out one group of prompts each, for metrics of sets."""
        group = dealt(prompts, groups, seed)
        units = min(prompts, groups)
        draws = tuple(np.flatnonzero(group != left) for left in range(units))
        return cls(draws, math.sqrt(max(0, units - 1)), prompts, units, left_out=True)

    def deviations(self, values: Floats) -> Floats:
        """How replicates deviate from their mean, in the size of the deviations of the whole; axis 0 is replicates."""
        away: Floats = (values - values.mean(0)) * self.scale
        return away

    def drawn(self, values: Floats, seed: int = 0) -> Floats:
        """Deviations as they might have been, ``(DRAWS, S)`` or as many as the replicates, of values ``(R, S)``."""
        away = self.deviations(values)
        if not self.left_out:
            return away
        weights = np.random.default_rng((seed, self.units)).standard_normal((DRAWS, self.units))
        sums: Floats = weights @ away / math.sqrt(self.units)
        return sums


@dataclass(frozen=True, eq=False)
class Curve:
    """A method at one number of steps. Row 0 of every array is of all samples, the others are replicates.

    Args:
        x: what curves are compared over, such as the mean effective scale, ``(1 + R, K)``: a column a point, in the
            order in which the method is to guide harder.
        y: what is compared.
        cost: network evaluations of a sample, mean.
        names: of the points.
    """

    x: Floats
    y: Floats
    cost: Floats
    names: tuple[str, ...] = ()

    @cached_property
    def pooled(self) -> tuple[tuple[int, ...], ...]:
        """The points in blocks of increasing x: pool adjacent violators, on all samples."""
        first = self.x[0]
        order = range(len(first))
        if (np.arange(len(first)) - (len(first) - 1) / 2) @ first < 0:  # a sweep that guides less and less
            order = order[::-1]
        blocks = isotonic_regression(first[order]).blocks
        return tuple(tuple(order[start:end]) for start, end in itertools.pairwise(blocks))

    def _blocked(self, values: Floats) -> Floats:
        return np.stack([values[:, list(block)].mean(1) for block in self.pooled], 1)

    @cached_property
    def points(self) -> tuple[Floats, Floats, Floats]:
        """The x, y and cost of each block of `pooled`, each of shape ``(1 + R, blocks)``."""
        return self._blocked(self.x), self._blocked(self.y), self._blocked(self.cost)

    @property
    def range(self) -> tuple[float, float]:
        """The least and the greatest x that was measured."""
        x = self.points[0][0]
        return float(x[0]), float(x[-1])

    def at(self, grid: Floats) -> tuple[Floats, Floats]:
        """Values and costs at `grid`, within the range, each ``(1 + R, len(grid))``."""
        x, y, cost = self.points
        order = np.argsort(x, 1, kind="stable")  # a replicate may have two points the other way round
        x, y, cost = (np.take_along_axis(values, order, 1) for values in (x, y, cost))
        found = [np.stack([np.interp(grid, *row) for row in zip(x, values, strict=True)]) for values in (y, cost)]
        return found[0], found[1]

    def unsure(self, grid: Floats) -> Floats:
        """How far a cubic that keeps the points' shape is from the straight lines, ``(len(grid),)``."""
        x, y, _ = self.points
        if x.shape[1] < 3:
            return np.zeros(len(grid))
        away: Floats = np.abs(PchipInterpolator(x[0], y[0])(grid) - np.interp(grid, x[0], y[0]))
        return away

    def band(self, grid: Floats, replicates: Replicates) -> tuple[Floats, Floats, Floats]:
        """The value at `grid` and the ends of its pointwise interval, NaN where there are too few prompts."""
        y, _ = self.at(grid)
        reach = _reach(y, replicates)
        return y[0], y[0] - reach, y[0] + reach


def _student(units: int, level: float = LEVEL) -> float:
    return student(units - 1, level) if units >= FEWEST else math.nan


def _errors(values: Floats, replicates: Replicates) -> Floats:
    errors: Floats = replicates.deviations(values[1:]).std(0)
    return errors


def _reach(values: Floats, replicates: Replicates) -> Floats:
    return _errors(values, replicates) * _student(replicates.units)


@dataclass(frozen=True, eq=False)
class Method:
    """A method as curves of a metric over effective scale.

    Args:
        name: to call it.
        curves: one for each number of steps.
    """

    name: str
    curves: tuple[Curve, ...]

    def range(self) -> tuple[float, float]:
        """The least and the greatest x that any of the curves reaches."""
        ranges = [curve.range for curve in self.curves]
        return min(low for low, _ in ranges), max(high for _, high in ranges)

    def on(self, grid: Floats) -> Surface:
        """The values and costs of the method at the effective scales of `grid`."""
        found = [(curve.at(grid), curve.unsure(grid), curve.range) for curve in self.curves]
        return Surface(
            np.stack([at[0] for at, _, _ in found]),
            np.stack([at[1][0] for at, _, _ in found]),
            np.stack([unsure for _, unsure, _ in found]),
            np.stack([(low <= grid) & (grid <= high) for _, _, (low, high) in found]),
        )


@dataclass(frozen=True, eq=False)
class Surface:
    """The values and costs of a method at some effective scales.

    Args:
        y: ``(curves, 1 + R, S)``.
        cost: ``(curves, S)``.
        unsure: of the interpolation, ``(curves, S)``.
        there: whether a curve reaches x, ``(curves, S)``.
    """

    y: Floats
    cost: Floats
    unsure: Floats
    there: NDArray[np.bool_]

    def costs(self, place: int) -> tuple[float, float]:
        """The least and the greatest cost at an x."""
        found = self.cost[self.there[:, place], place]
        return float(found.min()), float(found.max())

    def at(self, place: int, cost: float | None) -> tuple[Floats, float, float]:
        """The value at an x in every replicate, its mean cost, and how unsure the interpolation is.

        Args:
            place: of the x.
            cost: network evaluations to look at; None for those of the most expensive curve.
        """
        known = np.flatnonzero(self.there[:, place])
        known = known[np.argsort(self.cost[known, place], kind="stable")]
        costs, last = self.cost[known, place], known[-1]
        if cost is None or len(known) == 1:
            return self.y[last, :, place], float(costs[-1]), float(self.unsure[last, place])
        at = min(max(cost, float(costs[0])), float(costs[-1]))
        right = min(max(int(np.searchsorted(costs, at)), 1), len(costs) - 1)
        gap = float(costs[right] - costs[right - 1])
        share = (at - float(costs[right - 1])) / gap if gap > 0 else 1.0
        pair = known[right - 1 : right + 1]
        value = (1 - share) * self.y[pair[0], :, place] + share * self.y[pair[1], :, place]
        return value, at, float(self.unsure[pair, place].max())


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two methods at matched strength.

    Args:
        one, other: their names.
        x: where they were compared; empty if they were nowhere equally strong.
        difference: ``one - other`` there.
        low, high: its simultaneous band, interpolation included.
        costs: of both there, ``(2, len(x))``.
        prompts: that the band is of.
    """

    one: str
    other: str
    x: Floats
    difference: Floats
    low: Floats
    high: Floats
    costs: Floats
    prompts: int

    @property
    def equal_cost(self) -> bool:
        """Whether both cost the same wherever they were compared."""
        return bool((np.abs(self.costs[0] - self.costs[1]) <= EQUAL * self.costs.max(0)).all())

    def cut(self, part: slice) -> Comparison:
        """The comparison over a part of its x."""
        cut = {name: getattr(self, name)[part] for name in ("x", "difference", "low", "high")}
        return replace(self, **cut, costs=self.costs[:, part])

    @property
    def stretches(self) -> list[tuple[int, Comparison]]:
        """The comparison, cut where the verdict changes.

        Each part has a sign: 1 where `one` has the greater y beyond the band, -1 where `other` has, 0 where neither.
        """
        signs = ((self.low > 0).astype(int) - (self.high < 0).astype(int)).tolist()
        ends = [0, *(place for place in range(1, len(signs)) if signs[place] != signs[place - 1]), len(signs)]
        return [(signs[start], self.cut(slice(start, end))) for start, end in itertools.pairwise(ends) if end > start]


def compare(one: Method, other: Method, replicates: Replicates) -> Comparison:
    """Compare two methods at the effective scales that both have reached."""
    low = max(one.range()[0], other.range()[0])
    high = min(one.range()[1], other.range()[1])
    grid = np.unique(np.linspace(low, high, GRID)) if high > low else np.full(int(low == high), low)
    if not len(grid):
        return _nowhere(one, other, replicates)
    surfaces = (one.on(grid), other.on(grid))
    both = np.flatnonzero(surfaces[0].there.any(0) & surfaces[1].there.any(0))
    costs = {place: _common([surface.costs(place) for surface in surfaces]) for place in both.tolist()}
    if any(cost is not None for cost in costs.values()):
        both = np.array([place for place, cost in costs.items() if cost is not None])
    pairs = [tuple(surface.at(place, costs[place]) for surface in surfaces) for place in both.tolist()]
    return _comparison(one, other, grid[both], pairs, replicates) if pairs else _nowhere(one, other, replicates)


def compare_costs(one: Method, other: Method, x: float, replicates: Replicates) -> Comparison:
    """Compare two methods at one `x`, which both reach, over their common costs: `Comparison.x` are costs then."""
    surfaces = [method.on(np.array([x])) for method in (one, other)]
    ranges = [surface.costs(0) for surface in surfaces]
    low, high = max(least for least, _ in ranges), min(most for _, most in ranges)
    if low >= high:
        return _nowhere(one, other, replicates)
    grid = np.linspace(low, high, GRID)
    pairs = [(surfaces[0].at(0, float(cost)), surfaces[1].at(0, float(cost))) for cost in grid]
    return _comparison(one, other, grid, pairs, replicates)


def widest(one: Method, other: Method, x: Floats) -> float | None:
    """The one of `x`, which both reach, where they have the widest range of costs in common; None if they have none."""
    surfaces = (one.on(x), other.on(x))
    widths = []
    for place in range(len(x)):
        (low, high), (low_too, high_too) = (surface.costs(place) for surface in surfaces)
        widths.append(min(high, high_too) - max(low, low_too))
    most = max(widths, default=0.0)
    at = [value for value, width in zip(x.tolist(), widths, strict=True) if width >= most - 1e-9 * abs(most)]
    return at[len(at) // 2] if most > 0 else None


Value = tuple[Floats, float, float]


def _comparison(
    one: Method, other: Method, x: Floats, pairs: Sequence[tuple[Value, ...]], replicates: Replicates
) -> Comparison:
    values = np.stack([left[0] - right[0] for left, right in pairs], 1)
    reach = simultaneous(values, replicates) + np.array([left[2] + right[2] for left, right in pairs])
    costs = np.array([(left[1], right[1]) for left, right in pairs]).T
    value = values[0]
    return Comparison(one.name, other.name, x, value, value - reach, value + reach, costs, replicates.prompts)


def _nowhere(one: Method, other: Method, replicates: Replicates) -> Comparison:
    empty = np.zeros(0)
    return Comparison(one.name, other.name, empty, empty, empty, empty, np.zeros((2, 0)), replicates.prompts)


def _common(ranges: Sequence[tuple[float, float]]) -> float | None:
    """The greatest cost that is in both ranges, or None."""
    cost = min(high for _, high in ranges)
    return cost if all(low * (1 - EQUAL) <= cost for low, _ in ranges) else None


def simultaneous(values: Floats, replicates: Replicates) -> Floats:
    """How far the band of `values`, ``(1 + R, S)``, reaches to either side, for all S together; NaN of few prompts."""
    errors = _errors(values, replicates)
    # A difference that no replicate moves is as certain as it gets; it decides nothing about the others.
    known = errors > 1e-12 * max(1.0, float(np.abs(values).max()))
    if not known.any():
        return errors * _student(replicates.units)
    away = np.abs(replicates.drawn(values[1:])[:, known]) / errors[known]
    # The deviations are in errors that are estimated themselves: Student's quantile at the tail of the normal one.
    widest = float(np.quantile(away.max(1), LEVEL))
    reach: Floats = errors * max(_student(replicates.units, 2 * float(ndtr(widest)) - 1), _student(replicates.units))
    return reach
