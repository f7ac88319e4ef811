from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
from torchmetrics.image.fid import _compute_fid

from guidestack.evaluation import extractors
from guidestack.evaluation.metrics import parse_metric
from guidestack.evaluation.metrics.frechet import Frechet, Moments, distance, root

from .conftest import Refer
from .made import samples, whole, with_moments

RANDOM = np.random.default_rng(5)


def factor(size: int, rank: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(size, rank))


def moments(mean: object, covariance: object) -> Moments:
    return Moments(np.asarray(mean, float), np.asarray(covariance, float))


def test_of_one_dimension_it_is_the_difference_of_means_and_deviations() -> None:
    assert distance(moments([1.0], [[4.0]]), moments([4.0], [[25.0]])) == pytest.approx(9 + 9)


def test_of_covariances_that_commute_it_is_the_difference_of_their_roots() -> None:
    turn = np.linalg.qr(RANDOM.normal(size=(3, 3)))[0]
    one, other = (turn @ np.diag(values) @ turn.T for values in ([1.0, 4.0, 9.0], [16.0, 1.0, 0.0]))
    assert distance(moments([0, 0, 0], one), moments([1, 2, 2], other)) == pytest.approx(9 + 9 + 1 + 9)


@pytest.mark.parametrize("rank", [6, 2, 1])
def test_it_is_the_formula_with_a_matrix_root_at_any_rank(rank: int) -> None:
    one, other = factor(6, 6, 1), factor(6, rank, 2)
    mean1, mean2 = np.arange(6.0), np.ones(6)
    # The eigenvalues of A A' B B' that are not 0 are the squares of the singular values of A' B.
    common = np.linalg.svd(one.T @ other, compute_uv=False).sum()
    expected = ((mean1 - mean2) ** 2).sum() + (one**2).sum() + (other**2).sum() - 2 * common
    first, second = moments(mean1, one @ one.T), moments(mean2, other @ other.T)
    assert distance(first, second) == pytest.approx(expected, rel=1e-12)
    assert distance(second, first) == pytest.approx(expected, rel=1e-12)
    if rank == 6:  # and where the product is not singular, what the field's packages compute
        product = scipy.linalg.sqrtm(first.covariance @ second.covariance).real
        assert common == pytest.approx(np.trace(product), rel=1e-9)


def test_it_is_that_of_torchmetrics_on_the_same_features() -> None:
    real, made = RANDOM.normal(size=(300, 12)) @ RANDOM.normal(size=(12, 12)), RANDOM.normal(1, 2, size=(200, 12))
    parts = [torch.from_numpy(part) for rows in (real, made) for part in (rows.mean(0), np.cov(rows, rowvar=False))]
    assert distance(Moments.of(made), Moments.of(real)) == pytest.approx(float(_compute_fid(*parts)), rel=1e-6)


def test_it_is_0_for_the_same_set_and_symmetric() -> None:
    rows, others = RANDOM.normal(size=(50, 8)), RANDOM.normal(1, 3, size=(20, 8))
    assert abs(distance(Moments.of(rows), Moments.of(rows))) < 1e-9
    one, other = Moments.of(rows), Moments.of(others)
    assert distance(one, other) == pytest.approx(distance(other, one))
    assert distance(one, other, root(other.covariance)) == distance(one, other)


def test_moments_are_those_of_numpy() -> None:
    rows = RANDOM.normal(1000, 1, size=(97, 5)).astype(np.float32)
    found = Moments.of(rows)
    np.testing.assert_allclose(found.mean, rows.astype(np.float64).mean(0), rtol=1e-14)
    np.testing.assert_allclose(found.covariance, np.cov(rows.astype(np.float64), rowvar=False), rtol=1e-9)
    assert Moments.of(rows[:1]).covariance.tolist() == np.zeros((5, 5)).tolist()


@pytest.mark.parametrize("count", [2, 7, 11, 12, 13, 40])
def test_few_samples_and_many_are_computed_in_two_ways_with_one_result(count: int, refer: Refer) -> None:
    rows, target = RANDOM.normal(1, 2, size=(40, 12)), RANDOM.normal(size=(60, 12)).astype(np.float32)
    metric = Frechet(reference=refer(target))
    chosen = np.arange(count)
    expected = distance(Moments.of(rows.astype(np.float32)[chosen]), Moments.of(target))
    assert metric.prepare(samples(rows))(chosen) == pytest.approx(expected, rel=1e-6)


def test_the_metric_is_the_closed_form_of_two_gaussians(refer: Refer) -> None:
    metric = Frechet(reference=refer(with_moments([0, 0, 0], np.diag([1.0, 4.0, 9.0]), 50)))
    made = with_moments([1, 2, 2], np.diag([4.0, 4.0, 0.0]), 30, seed=1)
    assert whole(metric, samples(made)) == pytest.approx(9 + 1 + 9, rel=1e-5)


def test_its_name_has_extractor_filter_reference_and_count_and_few_samples_are_noted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    metric = parse_metric("frechet")
    monkeypatch.setattr(extractors, "dimensions", lambda text: 1280)
    assert isinstance(metric, Frechet)
    assert metric.named(48) == "frechet[efficientnet-lite0@128-bicubic-aa, reference=emoji-1716-all, samples=48]"
    assert parse_metric("frechet(reference='emoji-white')").full_name.endswith("reference=emoji-1716-white]")
    assert "strongly biased" in metric.note(1280)
    assert metric.note(1281) == ""
