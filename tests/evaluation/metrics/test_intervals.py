"""Intervals: known cases, and their coverage by simulation."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy import optimize, stats

from guidestack.evaluation import statistics as intervals
from guidestack.evaluation.metrics.frechet import Moments, distance
from guidestack.evaluation.metrics.neighbours import distances
from guidestack.scripts.dev.emoji.measure import Share

RUNS = 300


def covered(draw: Callable[[np.random.Generator], tuple[float, float]], truth: float, seed: int = 0) -> float:
    """The share of `RUNS` intervals that hold the truth."""
    random = np.random.default_rng(seed)
    ends = np.array([draw(random) for _ in range(RUNS)])
    assert np.isfinite(ends).all()
    return float(((ends[:, 0] <= truth) & (truth <= ends[:, 1])).mean())


# Three standard deviations of a share of 300 about 0.95: 0.912 to 0.988. The percentile bootstrap of 40 prompts lies a
# little below its level, the jackknife may lie above; a mistake in the unit, or a factor of two, lies far below 0.9.
LEAST, MOST = 0.90, 0.99


def test_the_bootstrap_of_a_mean_holds_the_truth_as_often_as_it_says() -> None:
    def draw(random: np.random.Generator) -> tuple[float, float]:
        prompts = np.repeat(np.arange(40), 5)
        values = random.normal(3, 1, 40)[prompts] + random.normal(0, 0.5, 200)  # images of a prompt are alike
        return intervals.bootstrap(values, prompts, draws=200, seed=int(random.integers(1 << 30)))

    assert LEAST <= covered(draw, 3) <= MOST


def test_images_instead_of_prompts_would_be_drawn_in_vain() -> None:
    def draw(random: np.random.Generator) -> tuple[float, float]:
        values = random.normal(3, 1, 40).repeat(5) + random.normal(0, 0.5, 200)
        return intervals.bootstrap(values, np.arange(200), draws=200)

    assert covered(draw, 3) < 0.75


@pytest.mark.parametrize(("share", "seeds"), [(0.5, 1), (0.97, 1), (0.8, 4)])
def test_an_interval_of_a_share_holds_the_truth_as_often_as_it_says(share: float, seeds: int) -> None:
    def draw(random: np.random.Generator) -> tuple[float, float]:
        own = random.beta(4 * share, 4 * (1 - share), 60) if seeds > 1 else np.full(60, share)
        prompts = np.repeat(np.arange(60), seeds)
        return intervals.wilson((random.random(60 * seeds) < own[prompts]).astype(float), prompts)

    assert LEAST <= covered(draw, share) <= MOST


@pytest.mark.parametrize(("right", "of"), [(0, 7), (1, 3), (50, 50), (17, 400)])
def test_the_interval_of_a_whole_count_is_scipy_s(right: int, of: int) -> None:
    found = intervals.share_interval(right / of, of, intervals.NORMAL)
    assert found == pytest.approx(
        tuple(stats.binomtest(right, of).proportion_ci(method="wilson")), rel=1e-12, abs=1e-15
    )


def test_a_share_of_one_is_not_known_exactly() -> None:
    assert intervals.wilson(np.ones(50), np.arange(50)) == Share(50, 50).interval()
    assert intervals.wilson(np.ones(50), np.repeat(np.arange(10), 5)) == Share(10, 10).interval()  # ten prompts, not 50
    assert intervals.wilson(np.array([1.0, 0, 1, 1]), np.arange(4)) == pytest.approx(Share(3, 4).interval())


def test_seeds_that_agree_count_as_one() -> None:
    values = np.array([1.0, 0, 1, 1, 0, 1, 1, 1])
    once = intervals.wilson(values, np.arange(8))
    assert intervals.wilson(values.repeat(6), np.arange(8).repeat(6)) == pytest.approx(once, abs=0.02)
    apart = np.tile([1.0, 0, 1, 1, 0, 1], 8)  # of every prompt the same share: nothing depends on the prompt
    assert intervals.wilson(apart, np.arange(8).repeat(6)) == pytest.approx(Share(32, 48).interval())


def moments(random: np.random.Generator, count: int) -> np.ndarray:
    return random.normal(0.5, 1.2, size=(count, 3))


TARGET = Moments(np.zeros(3), np.eye(3))


def frechet(rows: np.ndarray) -> float:
    return distance(Moments.of(rows), TARGET)


REFERENCE = np.random.default_rng(9).normal(size=(80, 3))


def covers(rows: np.ndarray) -> float:
    """Share of the reference with one of `rows` within a fixed distance: rises with their number, as coverage does."""
    return float((distances(REFERENCE, rows).min(1) < 0.6).mean())


@pytest.mark.parametrize("statistic", [frechet, covers])
def test_intervals_of_sets_hold_what_so_many_samples_give_on_average(
    statistic: Callable[[np.ndarray], float],
) -> None:
    random = np.random.default_rng(1)
    expected = float(np.mean([statistic(moments(random, 60)) for _ in range(4000)]))

    def draw(random: np.random.Generator) -> tuple[float, float]:
        rows = moments(random, 60)
        return intervals.jackknife(lambda chosen: statistic(rows[chosen]), np.arange(60), statistic(rows), groups=30)

    assert LEAST <= covered(draw, expected) < 1


@pytest.mark.parametrize(("count", "groups", "rel"), [(40, 50, 1e-9), (40, 40, 1e-9), (41, 20, 0.35), (400, 50, 0.35)])
def test_the_jackknife_of_a_mean_is_its_standard_error(count: int, groups: int, rel: float) -> None:
    values = np.random.default_rng(2).normal(size=count)
    low, high = intervals.jackknife(
        lambda rows: float(values[rows].mean()), np.arange(count), float(values.mean()), groups=groups
    )
    student = stats.t.ppf(0.975, min(count, groups) - 1)
    exact = student * values.std(ddof=1) / np.sqrt(count)
    assert (high - low) / 2 == pytest.approx(exact, rel=rel)
    assert (high + low) / 2 == pytest.approx(values.mean())


def test_the_jackknife_leaves_out_whole_prompts_each_once() -> None:
    prompts = np.array([7, 3, 7, 5, 3, 9, 9, 9, 1, 1, 2])
    left: list[set[int]] = []

    def statistic(rows: np.ndarray) -> float:
        without = set(prompts.tolist()) - set(prompts[rows].tolist())
        assert sorted(rows.tolist()) == np.flatnonzero(~np.isin(prompts, list(without))).tolist()
        left.append(without)
        return float(len(rows))

    intervals.jackknife(statistic, prompts, 4.0, groups=4)
    assert sorted(map(len, left)) == [1, 1, 2, 2]
    assert set.union(*left) == set(prompts.tolist())


def test_an_interval_stays_within_what_is_possible_and_says_when_it_knows_nothing() -> None:
    values = np.array([0.0, 0, 0, 0, 0, 0, 0, 1])
    low, high = intervals.jackknife(lambda rows: float(values[rows].mean()), np.arange(8), 0.125, (0.0, 1.0))
    assert low == 0 < high < 1
    for unknown in (
        intervals.jackknife(lambda rows: 1.0, np.arange(3), 1.0),
        intervals.jackknife(lambda rows: float("nan"), np.arange(9), 1.0),
        intervals.bootstrap(np.ones(5), np.zeros(5, np.int64)),
        intervals.bootstrap(np.ones(0), np.zeros(0, np.int64)),
        intervals.wilson(np.ones(0), np.zeros(0, np.int64)),
    ):
        assert np.isnan(unknown).all()


def test_the_same_seed_gives_the_same_interval_and_another_another() -> None:
    values, prompts = np.random.default_rng(3).normal(size=30), np.arange(30)
    assert intervals.bootstrap(values, prompts) == intervals.bootstrap(values, prompts)
    assert intervals.bootstrap(values, prompts) != intervals.bootstrap(values, prompts, seed=1)


def test_chunks_of_draws_make_no_difference_to_what_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    values, prompts = np.random.default_rng(3).normal(size=30), np.arange(30)
    whole = intervals.bootstrap(values, prompts)
    monkeypatch.setattr(intervals, "CHUNK", 100)
    assert intervals.bootstrap(values, prompts) == whole


@pytest.mark.parametrize("count", [4, 8, 20])
def test_few_prompts_make_an_interval_wide_enough(count: int) -> None:
    """The percentiles by themselves hold the mean of a normal in 0.80, 0.89 and 0.93 of the cases."""

    def draw(random: np.random.Generator) -> tuple[float, float]:
        return intervals.bootstrap(random.normal(size=count), np.arange(count), draws=400)

    assert 0.92 <= covered(draw, 0.0) <= MOST


def test_the_interval_of_a_mean_keeps_the_bounds() -> None:
    values = np.array([0.9, 0.99, 0.95, 1.0])
    assert (
        intervals.bootstrap(values, np.arange(4), (0.0, 1.0))[1] == 1.0 < intervals.bootstrap(values, np.arange(4))[1]
    )


def pairs(gains: int, losses: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of which so many have only the one, so many only the other, and the rest neither."""
    neither = np.zeros(count - gains - losses)
    one = np.concatenate([np.ones(gains), np.zeros(losses), neither])
    return one, np.concatenate([np.zeros(gains), np.ones(losses), neither])


@pytest.mark.parametrize(("gains", "losses", "count"), [(12, 2, 50), (1, 0, 44), (0, 7, 30), (3, 7, 40)])
def test_the_ends_of_a_difference_of_shares_are_where_the_score_test_rejects(
    gains: int, losses: int, count: int
) -> None:
    """The likelihood under the constraint is maximized by search instead of by Tango's formula."""

    def statistic(difference: float) -> float:
        def unlikely(lost: float) -> float:
            won = lost + difference
            logs = stats.multinomial.logpmf([gains, losses, count - gains - losses], count, [won, lost, 1 - won - lost])
            return -float(logs)

        least, most = max(0.0, -difference), (1 - difference) / 2
        found = optimize.minimize_scalar(
            unlikely, bounds=(least + 1e-12, most - 1e-12), method="bounded", options={"xatol": 1e-12}
        )
        spread = count * (2 * found.x + difference - difference**2)
        return float((gains - losses - count * difference) / np.sqrt(spread))

    low, high = intervals.paired_share(*pairs(gains, losses, count), np.arange(count))
    assert statistic(low) == pytest.approx(1.959964, abs=1e-3)
    assert statistic(high) == pytest.approx(-1.959964, abs=1e-3)
    assert intervals.paired_share(*pairs(losses, gains, count), np.arange(count)) == pytest.approx((-high, -low))


def test_pairs_that_do_not_differ_leave_a_difference_open() -> None:
    alike = np.array([1.0, 0, 1, 1] * 5)
    low, high = intervals.paired_share(alike, alike, np.arange(20))
    z = 1.959964**2
    assert (low, high) == pytest.approx((-z / (20 + z), z / (20 + z)))
    of_four = intervals.paired_share(alike, alike, np.repeat(np.arange(4), 5))  # four prompts, not 20
    assert of_four == pytest.approx((-z / (4 + z), z / (4 + z)))
    assert np.isnan(intervals.paired_share(alike[:3], alike[:3], np.arange(3))).all()
    assert intervals.paired_share(np.ones(9), np.zeros(9), np.arange(9))[1] == 1.0


@pytest.mark.parametrize("loss", [0.02, 0.1])
def test_a_difference_of_shares_is_held_as_often_as_it_says(loss: float) -> None:
    """24 prompts of 4 seeds, of which some lose more than others."""
    prompts = np.repeat(np.arange(24), 4)

    def draw(random: np.random.Generator) -> tuple[float, float]:
        one = (random.random(96) < random.beta(2, 1, 24)[prompts]).astype(float)
        other = one * (random.random(96) > random.choice([0, 3 * loss], 24)[prompts])
        return intervals.paired_share(one, other, prompts)

    assert covered(draw, 2 / 3 * 1.5 * loss) >= 0.92


def test_a_set_that_no_group_moves_from_its_bound_is_not_known_exactly() -> None:
    def whole(rows: np.ndarray) -> float:
        return 1.0

    assert intervals.jackknife(whole, np.arange(10), 1.0, (0.0, 1.0)) == Share(10, 10).interval()
    low, high = intervals.jackknife(lambda rows: 0.0, np.arange(10), 0.0, (0.0, 2.0))
    assert (low, high) == (0.0, pytest.approx(2 * Share(0, 10).interval()[1]))
    assert intervals.jackknife(whole, np.arange(10), 1.0) == (1.0, 1.0)  # of what has no bound nothing else is known
