"""How well a metric of a cell is known: intervals at 95%, with the prompt as the unit.

Images of one prompt resemble one another, so that not images are drawn but prompts, each with all its seeds: more seeds
of few prompts do not narrow an interval much.

* Means (`bootstrap`): the percentile bootstrap over prompts.
* Shares (`wilson`): Wilson's interval, which is right at shares near 0 and 1 as well, of the samples divided by the
  design effect of prompts; the bootstrap would say that a share of 1 is known exactly.
* Sets of images (`jackknife`): Student's interval with the jackknife's deviation, from the metric without one group of
  prompts after the other. It is not too narrow on average whatever the metric (Efron and Stein 1981), and the metric's
  bias drops out. The bootstrap draws images twice, which nearest neighbours and covariances take for a narrower set: of
  a coverage by 60 samples it finds 0.7 of the true deviation.

The interval is of the number that so many samples are expected to give: it does not correct a metric's bias.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from ..scripts.emoji.nearest import wilson as wilson_of

LEVEL = 0.95
DRAWS, GROUPS = 1000, 50
FEWEST = 4  # prompts, below which a deviation is not worth the name
CHUNK = 1 << 22  # numbers that are drawn at a time

Values = NDArray[np.float64]
Prompts = NDArray[np.int64]
Rows = NDArray[np.int64]
Interval = tuple[float, float]
UNKNOWN = (math.nan, math.nan)


def members(prompts: Prompts) -> list[Rows]:
    """The rows of each prompt."""
    order = np.argsort(prompts, kind="stable")
    starts = np.flatnonzero(np.diff(prompts[order])) + 1
    return [rows.astype(np.int64) for rows in np.split(order, starts)] if len(prompts) else []


def _sums(values: Values, prompts: Prompts) -> tuple[Values, Values]:
    """Of each prompt the sum of its values and their number."""
    _, place = np.unique(prompts, return_inverse=True)
    return np.bincount(place, values).astype(np.float64), np.bincount(place).astype(np.float64)


def bootstrap(values: Values, prompts: Prompts, draws: int = DRAWS, seed: int = 0) -> Interval:
    """The interval of a mean.

    Args:
        values: of each sample.
        prompts: of each sample.
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
    low, high = np.quantile(np.concatenate(means), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def wilson(values: Values, prompts: Prompts) -> Interval:
    """The interval of a share, of values that are 0 and 1.

    The design effect is the variance of the share over prompts, divided by that of as many independent samples; it is
    taken to be at least 1, and no greater than the mean number of samples of a prompt, its value if all are equal.
    """
    if not len(values):
        return UNKNOWN
    sums, counts = _sums(values, prompts)
    count, units, share = len(values), len(sums), float(values.mean())
    most = count / units
    independent = share * (1 - share) / count
    if units < 2 or not independent:
        effect = most  # nothing is known of how alike they are
    else:
        away = sums - share * counts
        effect = float((away**2).sum()) * units / (units - 1) / count**2 / independent
    return wilson_of(share, count / min(max(effect, 1.0), max(most, 1.0)))


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
    """The interval of a metric of a set.

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
    reach = float(stdtrit(count - 1, (1 + LEVEL) / 2)) * deviation
    return max(bounds[0], value - reach), min(bounds[1], value + reach)
