"""Matched strength, by simulation: methods whose curves are known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from guidestack.evaluation.analysis.matched import (
    Comparison,
    Curve,
    Method,
    Replicates,
    compare,
    compare_costs,
    simultaneous,
    widest,
)
from guidestack.evaluation.statistics import EQUAL

SCALES = np.array([1.5, 2.5, 4.0, 6.0, 9.0])


def curve(
    replicates: Replicates,
    x: np.ndarray,
    truth: Callable[[np.ndarray], np.ndarray],
    noise: np.ndarray,
    cost: float = 20.0,
) -> Curve:
    """A method measured at mean effective scales `x`, on prompts whose own deviations are `noise`, ``(prompts, K)``."""
    values = truth(x) + noise

    def columns(each: np.ndarray) -> np.ndarray:
        return np.stack([each.mean(0), *(each[draw].mean(0) for draw in replicates.draws)])

    wobble = np.linspace(-0.05, 0.05, len(noise))[:, None] * x  # the effective scale is a prompt's own, too
    return Curve(columns(x + wobble), columns(values), columns(np.full_like(values, cost)))


def bent(x: np.ndarray) -> np.ndarray:
    return 1 - np.exp(-x / 3)


def pair(
    seed: int,
    gain: Callable[[np.ndarray], np.ndarray],
    harder: float = 1.0,
    prompts: int = 24,
    noise: float = 0.08,
    cost: float = 20.0,
    draws: int = 200,
) -> Comparison:
    """One method with the curve `bent`, another with `gain` more, that guides `harder` at the same written scales."""
    generator = np.random.default_rng(seed)
    replicates = Replicates.bootstrap(prompts, draws)
    common = generator.normal(0, 0.2, (prompts, 1))  # what a prompt has in all cells
    first = curve(replicates, SCALES, bent, common + generator.normal(0, noise, (prompts, len(SCALES))))
    second = curve(
        replicates,
        harder * SCALES,
        lambda x: bent(x) + gain(x),
        common + generator.normal(0, noise, (prompts, len(SCALES))),
        cost,
    )
    return compare(Method("harder", (second,)), Method("plain", (first,)), replicates)


def nothing(x: np.ndarray) -> np.ndarray:
    return np.zeros_like(x)


def test_a_method_that_only_guides_harder_is_not_better() -> None:
    """Its points at the same written scale are all better; at the same effective scale nothing is."""
    assert (bent(1.6 * SCALES) > bent(SCALES)).all()
    found = [pair(seed, nothing, harder=1.6) for seed in range(100)]
    wrong = sum(any(sign for sign, _ in one.stretches) for one in found)
    assert wrong <= 10  # 95% bands; 5 are expected
    for one in found:
        # only where both were measured
        assert one.x[0] == pytest.approx(1.6 * SCALES[0])
        assert one.x[-1] == pytest.approx(SCALES[-1])


def test_nor_is_it_when_nothing_is_left_to_chance() -> None:
    """With 10,000 prompts there is no noise to hide behind: what is left is how curves are read between points."""
    one = pair(0, nothing, harder=1.6, prompts=10_000, noise=0.01, draws=100)
    assert [sign for sign, _ in one.stretches] == [0]
    assert np.abs(one.high - one.low).max() < 0.2


def test_a_real_gain_is_found_where_it_is() -> None:
    def above_4(x: np.ndarray) -> np.ndarray:
        return np.where(x > 4, 0.25, 0.0)

    for seed in range(5):
        signs = pair(seed, above_4, harder=1.2).stretches
        better = [stretch for sign, stretch in signs if sign > 0]
        assert len(better) == 1
        assert not any(sign < 0 for sign, _ in signs)
        assert better[0].costs.shape == (2, len(better[0].x))
        assert 3.0 < better[0].x[0] < 5.5  # the curve is a line from the point at 3 to that at 4.8
        assert better[0].x[-1] == pytest.approx(9.0, abs=0.6)
        assert 0.03 < better[0].difference.min() <= better[0].difference.max() < 0.5
    worse = pair(1, lambda x: -above_4(x), harder=1.2).stretches
    assert [sign for sign, _ in worse] in ([0, -1], [0, -1, 0])


@pytest.mark.parametrize(
    "replicates",
    [Replicates.bootstrap(40, 300), Replicates.jackknife(40), Replicates.jackknife(50, groups=25)],
    ids=["bootstrap", "jackknife", "groups"],
)
def test_the_band_covers_the_truth_everywhere_at_once(replicates: Replicates) -> None:
    """Of straight curves, which interpolation reads rightly, 95% of bands have the difference inside everywhere."""
    inside, prompts = 0, replicates.prompts
    for seed in range(200):
        generator = np.random.default_rng(seed)
        rows = generator.normal(0, 1, (prompts, 9)) + generator.normal(0, 1, (prompts, 1)) + 0.3
        values = np.stack([rows.mean(0), *(rows[draw].mean(0) for draw in replicates.draws)])
        inside += bool((np.abs(values[0] - 0.3) <= simultaneous(values, replicates)).all())
    assert 0.92 <= inside / 200 <= 0.99


def test_the_jackknife_of_a_mean_has_its_textbook_error() -> None:
    rows = np.random.default_rng(1).normal(0, 1, (60, 1))
    textbook = float(rows.std(ddof=1)) / 60**0.5

    def error(replicates: Replicates) -> float:
        values = np.stack([rows[draw].mean(0) for draw in replicates.draws])
        return float(replicates.deviations(values).std(0)[0])

    assert error(Replicates.jackknife(60, groups=60)) == pytest.approx(textbook, rel=1e-12)
    assert error(Replicates.bootstrap(60, 4000)) == pytest.approx(textbook, rel=0.05)


def test_groups_are_left_out_whole() -> None:
    """Seven prompts in three groups: each is left out once."""
    replicates = Replicates.jackknife(7, groups=3)
    assert (replicates.prompts, replicates.units) == (7, 3)
    left = [sorted({*range(7)} - {*draw.tolist()}) for draw in replicates.draws]
    assert sorted(map(len, left)) == [2, 2, 3]
    assert sorted(one for group in left for one in group) == [*range(7)]


def test_of_a_metric_of_sets_the_error_is_the_true_one() -> None:
    """The share of a line that points are near to, as a coverage: its spread over samples is known by sampling."""
    grid = np.linspace(0, 1, 200)

    def covered(points: np.ndarray) -> float:
        return float((np.abs(grid[:, None] - points).min(1) < 0.01).mean())

    generator = np.random.default_rng(3)
    samples = generator.random((200, 60))
    true = float(np.std([covered(sample) for sample in samples]))
    replicates = Replicates.jackknife(60)
    found = []
    for sample in samples[:40]:
        values = np.array([[covered(sample[draw])] for draw in replicates.draws])
        found.append(float(replicates.deviations(values).std(0)[0]))
    assert 1 < float(np.mean(found)) / true < 1.6  # on average not too small (Efron and Stein 1981)


def test_what_prompts_have_in_common_cancels() -> None:
    wide = pair(3, nothing, noise=0.01)
    assert float((wide.high - wide.low).max()) < 0.25  # prompts differ by 0.2 each, the methods by 0.01 on each


def exact(x: list[float], y: list[float], cost: float = 20.0, replicates: int = 3) -> Curve:
    """A curve without any noise."""

    def rows(values: list[float]) -> np.ndarray:
        return np.tile(np.array(values, float), (1 + replicates, 1))

    return Curve(rows(x), rows(y), rows([cost] * len(x)))


def test_scales_that_do_not_guide_harder_are_pooled() -> None:
    folded = exact([1.0, 3.0, 2.0, 4.0], [0.0, 1.0, 3.0, 5.0])
    assert folded.pooled == ((0,), (1, 2), (3,))
    x, y, _ = folded.points
    assert x[0].tolist() == [1.0, 2.5, 4.0]
    assert y[0].tolist() == [0.0, 2.0, 5.0]
    tied = exact([1.0, 2.0, 2.0], [0.0, 1.0, 3.0])
    assert tied.pooled == ((0,), (1, 2))
    falling = exact([4.0, 2.5, 1.0], [5.0, 2.0, 0.0])  # as a sweep over what takes guidance away
    assert falling.pooled == ((2,), (1,), (0,))
    assert falling.at(np.array([2.5]))[0][0, 0] == 2.0
    constant = exact([2.0, 2.0], [1.0, 3.0])
    assert constant.range == (2.0, 2.0)
    assert constant.at(np.array([2.0]))[0][0, 0] == 2.0


def test_there_is_no_extrapolation() -> None:
    replicates = Replicates.bootstrap(8, 3)
    low = Method("low", (exact([1.0, 2.0], [0.0, 1.0]),))
    high = Method("high", (exact([3.0, 4.0], [0.0, 1.0]),))
    apart = compare(low, high, replicates)
    assert len(apart.x) == 0
    assert apart.stretches == []
    touching = compare(low, Method("high", (exact([2.0, 4.0], [3.0, 5.0]),)), replicates)
    assert touching.x.tolist() == [2.0]
    assert touching.difference.tolist() == [-2.0]
    point = compare(Method("point", (exact([1.5], [7.0]),)), low, replicates)
    assert point.x.tolist() == [1.5]
    assert point.difference.tolist() == [6.5]


def test_costs_that_differ_are_said() -> None:
    equal = pair(0, nothing)
    assert equal.equal_cost
    dear = pair(0, nothing, cost=20 * (1 + 2 * EQUAL))
    assert not dear.equal_cost
    assert dear.costs[0].tolist() == pytest.approx([20 * (1 + 2 * EQUAL)] * len(dear.x))


def test_several_numbers_of_steps_are_compared_at_equal_cost() -> None:
    """One method is worse at each number of steps, and cheaper; at equal cost it is better."""
    replicates = Replicates.bootstrap(8, 3)
    x = [1.0, 2.0, 4.0]
    plain = Method("plain", tuple(exact(x, [cost / 10 + one for one in x], cost) for cost in (20.0, 40.0)))
    cheap = Method("cheap", tuple(exact(x, [cost / 10 + one + 0.5 for one in x], cost) for cost in (15.0, 30.0)))
    found = compare(cheap, plain, replicates)
    assert found.equal_cost
    assert found.costs[0].tolist() == pytest.approx([30.0] * len(found.x))  # the most that both reach
    np.testing.assert_allclose(found.difference, 0.5)  # between 20 and 40 evaluations plain is interpolated
    over = compare_costs(cheap, plain, 2.0, replicates)
    assert (over.x[0], over.x[-1]) == (20.0, 30.0)
    np.testing.assert_allclose(over.difference, 0.5)
    assert len(compare_costs(cheap, Method("dear", (exact(x, x, 90.0),)), 2.0, replicates).x) == 0
    # at 3 and above only 15 evaluations are there, and plain's least are 20: nothing is said of that
    partly = Method("partly", (exact([1.0, 4.0], [0, 0], 15.0), exact([1.0, 3.0], [0, 0], 30.0)))
    assert compare(partly, plain, replicates).x[-1] <= 3.0
    assert compare(partly, plain, replicates).equal_cost
    far = Method("far", (exact([1.0, 3.0], [0, 0], 20.0), exact([1.0, 2.0], [0, 0], 40.0)))
    assert widest(far, plain, np.array([1.0, 1.5, 2.0, 2.5, 3.0])) == 1.5  # of the first three, where far has two costs
    assert widest(far, plain, np.array([2.5, 3.0])) is None


def test_few_prompts_decide_nothing() -> None:
    found = pair(0, lambda x: np.full_like(x, 5.0), prompts=3)
    assert np.isnan(found.low).all()
    assert [sign for sign, _ in found.stretches] == [0]
    assert [sign for sign, _ in pair(0, lambda x: np.full_like(x, 5.0), prompts=4).stretches] == [1]


def test_a_bend_between_points_counts_against_a_verdict() -> None:
    replicates = Replicates.bootstrap(8, 3)
    sharp = exact([1.0, 2.0, 3.0], [0.0, 1.0, 0.0])
    line = exact([1.0, 3.0], [0.0, 0.0])
    assert sharp.unsure(np.array([1.0, 1.5, 2.0])).tolist() == pytest.approx(
        [0.0, 0.25, 0.0]
    )  # the cubic rises at 2 to 1
    assert line.unsure(np.array([2.0])).tolist() == [0.0]
    found = compare(Method("sharp", (sharp,)), Method("line", (line,)), replicates)
    reach = (found.high - found.low) / 2
    np.testing.assert_allclose(reach, sharp.unsure(found.x), atol=1e-12)
