"""Verdicts: the table, claims by their rows, false findings and power by simulation at the sizes of the claims."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pytest

from guidestack.evaluation import statistics as intervals
from guidestack.evaluation.metrics.frechet import Moments, distance
from guidestack.evaluation.verdicts import CONTRARY, HOLDS, NOTHING, UNDECIDED, overall, said, verdict, wanted

RUNS = 300


@pytest.mark.parametrize(
    ("low", "high", "be", "expected"),
    [
        (-3, -1.5, "lower", HOLDS),
        (-3, -0.5, "lower", HOLDS),
        (-0.9, -0.5, "lower", NOTHING),
        (-0.9, 0.9, "higher", NOTHING),
        (-0.9, 1.1, "higher", UNDECIDED),
        (0.5, 1.1, "higher", HOLDS),
        (0.5, 1.1, "lower", CONTRARY),
        (-0.9, 5, "not lower", HOLDS),
        (-1.1, 5, "not lower", UNDECIDED),
        (-5, -1.1, "not lower", CONTRARY),
        (-5, 0.9, "not higher", HOLDS),
        (-5, 1.1, "not higher", UNDECIDED),
        (1.1, 5, "not higher", CONTRARY),
        (-0.9, 0.9, "same", HOLDS),
        (-0.9, 1.1, "same", UNDECIDED),
        (1.1, 2, "same", CONTRARY),
        (-2, -1.1, "same", CONTRARY),
        (-1.0, -1.0, "lower", HOLDS),  # exactly what matters, known exactly
        (0.0, 0.0, "lower", NOTHING),
        *((math.nan, math.nan, be, UNDECIDED) for be in ("lower", "higher", "not lower", "not higher", "same")),
    ],
)
def test_a_verdict_is_that_of_the_table(low: float, high: float, be: str, expected: str) -> None:
    assert verdict(low, high, be, 1) == expected


@dataclasses.dataclass(frozen=True)
class Row:
    verdict: str

    @property
    def said(self) -> str:
        return said(self.verdict, 0.05)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([HOLDS] * 3, "holds in all 3 rows"),
        ([HOLDS], "holds in its 1 row"),
        ([HOLDS, NOTHING, HOLDS], "holds in 2 of 3 rows; row 2: no difference larger than 0.05"),
        ([CONTRARY], "holds in 0 of 1 row; row 1: does not hold"),
        (
            [HOLDS, UNDECIDED, NOTHING, CONTRARY, UNDECIDED],
            "holds in 1 of 5 rows; does not hold in 1; no difference in 1; undecided in 2",
        ),
    ],
)
def test_a_claim_has_the_verdicts_of_its_rows(rows: list[str], words: str) -> None:
    assert overall([Row(one) for one in rows]) == words


def shares(random: np.random.Generator, away: float = 0.0) -> tuple[float, float]:
    """400 pairs of a share of 0.8, of which about a sixth differ: a row of `concept`."""
    ease = random.random(400)
    one, other = ((ease + random.uniform(-0.2, 0.2, 400) < level).astype(float) for level in (0.8 + away, 0.8))
    return intervals.paired_share(one, other, np.arange(400))


def means(random: np.random.Generator, away: float = 0.0) -> tuple[float, float]:
    """300 differences of a skewed number: a row of `ssim` or `saturation`."""
    values = random.gamma(2, 0.05, 300) - 0.1 + away
    return intervals.jackknife(lambda rows: float(values[rows].mean()), np.arange(300), float(values.mean()))


REFERENCE = Moments.of(np.random.default_rng(9).normal(size=(400, 4)))


def sets(random: np.random.Generator, away: float = 0.0) -> tuple[float, float]:
    """Two sets of 400 features each: a row of `frechet`, in four dimensions."""
    common = random.normal(size=(400, 4))
    one, other = (common + random.normal(0.2 + level, 0.5, (400, 4)) for level in (away, 0.0))

    def difference(rows: np.ndarray) -> float:
        return distance(Moments.of(one[rows]), REFERENCE) - distance(Moments.of(other[rows]), REFERENCE)

    return intervals.jackknife(difference, np.arange(400), difference(np.arange(400)))


@pytest.mark.parametrize("draw", [shares, means, sets])
def test_where_there_is_no_difference_five_rows_in_a_hundred_say_so_and_not_more(
    draw: Callable[[np.random.Generator], tuple[float, float]],
) -> None:
    """Whatever the size that matters; here nearly none, so that nothing is left to "no difference"."""
    random, runs = np.random.default_rng(3), RUNS if draw is not sets else 120
    found = [verdict(*draw(random), "lower", 1e-12) for _ in range(runs)]
    false = 1 - found.count(UNDECIDED) / runs
    assert 0.01 <= false < 0.05 + 3 * math.sqrt(0.05 * 0.95 / runs)
    assert min(found.count(HOLDS), found.count(CONTRARY)) > 0  # both ends, of two at 2.5%


@pytest.mark.parametrize(("be", "away"), [("higher", 0.05), ("not lower", 0.0), ("same", 0.0)])
def test_so_many_units_decide_four_rows_in_five(be: str, away: float) -> None:
    """The count that a plan gives: a difference that matters is found, and that there is none is shown."""
    random, spread, matters = np.random.default_rng(4), 0.25, 0.05
    count = wanted(spread, be, matters)
    values = random.normal(away, spread, (2000, count))
    middle, reach = values.mean(1), 1.96 * values.std(1, ddof=1) / math.sqrt(count)
    held = np.mean([verdict(*ends, be, matters) == HOLDS for ends in zip(middle - reach, middle + reach, strict=True)])
    assert 0.77 < held < 0.83


def test_more_power_and_smaller_differences_need_more() -> None:
    assert wanted(1, "lower", 0.1) == math.ceil(((1.959964 + 0.841621) / 0.1) ** 2)
    assert wanted(1, "lower", 0.1, power=0.95) > wanted(1, "lower", 0.1) == wanted(1, "not lower", 0.1)
    assert wanted(0, "same", 0.1) == 1


def test_a_pilot_without_a_difference_is_no_proof_that_there_is_none() -> None:
    assert intervals.spread_of_shares(np.zeros(25), np.arange(25)) == pytest.approx(0.2)
    away = np.array([1.0, -1.0, 0.0, 0.0])
    assert intervals.spread_of_shares(away, np.arange(4)) == pytest.approx(math.sqrt(0.5))
