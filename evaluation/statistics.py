"""How well a metric of a cell is known: intervals at 95%, with the prompt as the unit.

Images of one prompt resemble one another, so that not images are drawn but prompts, each with all its seeds: more seeds
of few prompts do not narrow an interval much.

* Means (`bootstrap`): the bootstrap over prompts, whose percentiles are taken apart by what a few prompts make them lie
  too close: by the root of n / (n - 1), and from a normal's quantile to Student's.
* Shares (`wilson`): Wilson's interval, which is right at shares near 0 and 1 as well, of the samples divided by the
  design effect of prompts; the bootstrap would say that a share of 1 is known exactly.
* Differences of two shares of the same prompts and seeds (`paired_share`): Tango's score interval, of the pairs divided
  by their design effect, which is right as well where few pairs differ, or none.
* Sets of images (`jackknife`): Student's interval with the jackknife's deviation, from the metric without one group of
  prompts after the other. It is not too narrow on average whatever the metric (Efron and Stein 1981), and the metric's
  bias drops out. The bootstrap draws images twice, which nearest neighbours and covariances take for a narrower set: of
  a coverage by 60 samples it finds 0.7 of the true deviation. A value at its bound that no group moves has the interval
  of a share of as many prompts.

The interval is of the number that so many samples are expected to give: it does not correct a metric's bias.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

LEVEL = 0.95
DRAWS, GROUPS = 1000, 50
EQUAL = 0.02  # relative difference of costs that counts as none
FEWEST = 4  # prompts, below which a deviation is not worth the name
CHUNK = 1 << 22  # numbers that are drawn at a time

T = TypeVar("T")
Values = NDArray[np.float64]
Prompts = NDArray[np.int64]
Rows = NDArray[np.int64]
Interval = tuple[float, float]
UNKNOWN = (math.nan, math.nan)
NORMAL = 1.959963984540054


def members(prompts: Prompts) -> list[Rows]:
    """The rows of the samples of each prompt."""
    order = np.argsort(prompts, kind="stable")
    starts = np.flatnonzero(np.diff(prompts[order])) + 1
    return [rows.astype(np.int64) for rows in np.split(order, starts)] if len(prompts) else []


def _sums(values: Values, prompts: Prompts) -> tuple[Values, Values]:
    """Of each prompt the sum of its values and their number."""
    _, place = np.unique(prompts, return_inverse=True)
    return np.bincount(place, values).astype(np.float64), np.bincount(place).astype(np.float64)


def bootstrap(
    values: Values,
    prompts: Prompts,
    bounds: Interval = (-math.inf, math.inf),
    draws: int = DRAWS,
    seed: int = 0,
) -> Interval:
    """The 95% interval of a mean, by the bootstrap over prompts.

    Args:
        values: of each sample.
        prompts: of each sample.
        bounds: of the values there can be.
        draws: of the prompts.
        seed: the same one draws the same prompts.

    Returns:
        Its ends; NaN for fewer than two prompts.
    """
    sums, counts = _sums(values, prompts)
    units = len(sums)
    if units < 2:
        return UNKNOWN
    generator = np.random.default_rng((seed, units))
    means: list[Values] = []
    step = max(1, CHUNK // units)
    for start in range(0, draws, step):
        drawn = generator.integers(units, size=(min(step, draws - start), units))
        means.append(sums[drawn].sum(1) / counts[drawn].sum(1))
    ends = np.quantile(np.concatenate(means), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    mean, wider = sums.sum() / counts.sum(), math.sqrt(units / (units - 1)) * student(units - 1) / NORMAL
    low, high = (float(mean + wider * (end - mean)) for end in ends)
    return max(bounds[0], low), min(bounds[1], high)


def student(freedom: float, level: float = LEVEL) -> float:
    """The quantile of Student's distribution that an interval of this level reaches to."""
    return float(stdtrit(freedom, (1 + level) / 2))


def share_interval(share: float, count: float, z: float = 1.959964) -> Interval:
    """Wilson's interval of a share of `count` independent samples, at 95% by default; it stays within [0, 1].

    scipy's is for whole counts only; a count divided by a design effect is none.
    """
    width = 1 + z**2 / count
    middle = (share + z**2 / (2 * count)) / width
    half = z / width * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def wilson(values: Values, prompts: Prompts) -> Interval:
    """Wilson's 95% interval of a share, of values that are 0 and 1, with prompts as the unit."""
    if not len(values):
        return UNKNOWN
    share = float(values.mean())
    return share_interval(share, len(values) / _effect(values, prompts, share * (1 - share)))


def _effect(values: Values, prompts: Prompts, variance: float) -> float:
    """The design effect of prompts: the variance of the mean of `values` over that of as many independent ones.

    Args:
        values: of each sample.
        prompts: of each sample.
        variance: of a single one; where it is 0, nothing is known of how alike they are.

    Returns:
        1 at least, and the mean number of samples of a prompt at most.
    """
    sums, counts = _sums(values, prompts)
    count, units = len(values), len(sums)
    most = count / units
    if units < 2 or not variance:
        return most
    away = sums - float(values.mean()) * counts
    effect = float((away**2).sum()) * units / (units - 1) / count / variance
    return min(max(effect, 1.0), max(most, 1.0))


def paired_share(one: Values, other: Values, prompts: Prompts) -> Interval:
    """The interval of a difference of two shares, ``mean(one) - mean(other)``, of pairs.

    The score interval of Tango 1998 (Statistics in Medicine 17): all differences that the score test of the pairs in
    which only the one is 1, and those in which only the other is, does not reject.

    Args:
        one: 0 or 1, of each pair.
        other: likewise.
        prompts: of each pair.

    Returns:
        Its ends; NaN for fewer than four prompts.
    """
    from scipy.optimize import brentq  # which takes its time to import

    if len(np.unique(prompts)) < FEWEST:
        return UNKNOWN
    away = one - other
    effect = _effect(away, prompts, float(away.var()))
    gains, losses, count = (float(number) / effect for number in ((away > 0).sum(), (away < 0).sum(), len(away)))

    def score(difference: float) -> float:
        """The score statistic of a difference: standard normal if it is the true one."""
        linear = (2 * count - gains + losses) * difference - gains - losses
        constant = -losses * difference * (1 - difference)
        lost = (math.sqrt(max(0.0, linear**2 - 8 * count * constant)) - linear) / (4 * count)
        variance = count * (2 * lost + difference * (1 - difference))
        top = gains - losses - count * difference
        return top / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, top) if top else 0.0

    value, edge = (gains - losses) / count, 1 - 1e-12
    low = brentq(lambda d: score(d) - NORMAL, -edge, value) if score(-edge) > NORMAL else -1.0
    high = brentq(lambda d: score(d) + NORMAL, value, edge) if score(edge) < -NORMAL else 1.0
    return float(low), float(high)


def spread_of_shares(away: Values, prompts: Prompts) -> float:
    """About the deviation of one prompt's mean difference of two shares, for planning from a small pilot.

    Where none of a few prompts differs, as many may differ as one in all of them: the variance is 1 / prompts at least.

    Args:
        away: the differences of pairs, -1, 0 or 1.
        prompts: of each pair.
    """
    sums, counts = _sums(away, prompts)
    return math.sqrt(max(float(np.var(sums / counts)), 1 / len(sums))) if len(sums) else math.nan


def undominated(items: Iterable[T], of: Callable[[T], Interval]) -> list[T]:
    """Items that no other is at least as good as in both of two numbers, and better in one; of equal ones the first.

    Args:
        items: in any order.
        of: both numbers of an item, the larger the better.

    Returns:
        Those with the best first number first.

    >>> undominated([(1, 1), (2, 3), (3, 2)], lambda one: one)
    [(3, 2), (2, 3)]
    """
    found: list[T] = []
    best = -math.inf
    for (_, second), item in sorted(((of(item), item) for item in items), key=lambda one: (-one[0][0], -one[0][1])):
        if second > best:
            best = second
            found.append(item)
    return found


def dealt(prompts: int, groups: int = GROUPS, seed: int = 0) -> Rows:
    """The group of each of so many prompts: of at most `groups`, as equal as can be, dealt at random."""
    group = np.empty(prompts, np.int64)
    group[np.random.default_rng((seed, prompts)).permutation(prompts)] = np.arange(prompts) % min(prompts, groups)
    return group


def jackknife(
    statistic: Callable[[Rows], float],
    prompts: Prompts,
    value: float,
    bounds: Interval = (-math.inf, math.inf),
    groups: int = GROUPS,
    seed: int = 0,
) -> Interval:
    """The 95% interval of a metric of a set, by the jackknife over groups of prompts.

    Args:
        statistic: the metric of some rows.
        prompts: of each row.
        value: of all rows.
        bounds: of the values there can be.
        groups: of prompts, at most; the statistic is called once for each.
        seed: the same one deals the same groups.

    Returns:
        Its ends; NaN for fewer than four prompts, or where the metric has no value without one of the groups.
    """
    rows = members(prompts)
    count = min(len(rows), groups)
    if count < FEWEST:
        return UNKNOWN
    group = np.empty(len(prompts), np.int64)
    for one, place in zip(rows, dealt(len(rows), groups, seed).tolist(), strict=True):
        group[one] = place
    found = np.array([statistic(np.flatnonzero(group != left)) for left in range(count)])
    if not np.isfinite(found).all():
        return UNKNOWN
    deviation = math.sqrt((count - 1) / count * ((found - found.mean()) ** 2).sum())
    least, most = bounds
    if value in bounds and math.isfinite(most - least) and deviation <= 1e-12 * (most - least):
        low, high = share_interval((value - least) / (most - least), len(rows))
        return least + low * (most - least), least + high * (most - least)
    reach = student(count - 1) * deviation
    return max(least, value - reach), min(most, value + reach)
