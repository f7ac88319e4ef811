"""Sets of features: known mixtures, and the field's packages on the same features."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from prdc import compute_prdc
from torchmetrics.image.kid import poly_mmd

from guidestack.evaluation.metrics import TooFewError, parse_metric
from guidestack.evaluation.metrics.diversity import Diversity, Vendi
from guidestack.evaluation.metrics.kid import KID
from guidestack.evaluation.metrics.neighbours import Coverage, Density, Precision, Recall, radii
from guidestack.guidance.errors import InputError

from .conftest import Refer
from .made import samples, whole

RANDOM = np.random.default_rng(6)
NEIGHBOURS = {"precision": Precision, "recall": Recall, "density": Density, "coverage": Coverage}


def clusters(*places: float, count: int = 60, seed: int = 0) -> np.ndarray:
    """Tight clusters on a line, `count` points each: mixtures that do not overlap."""
    points = np.random.default_rng(seed).normal(scale=0.01, size=(len(places), count, 3))
    points[..., 0] += np.array(places)[:, None]
    return points.reshape(-1, 3)


def test_kid_is_that_of_torchmetrics_on_the_same_features(refer: Refer) -> None:
    real, made = RANDOM.normal(size=(70, 16)), RANDOM.normal(0.2, 1.3, size=(70, 16))  # it takes equal counts only
    expected = poly_mmd(*(torch.from_numpy(rows.astype(np.float32)).double() for rows in (real, made)))
    assert whole(KID(reference=refer(real)), samples(made)) == pytest.approx(float(expected), rel=1e-9)


def test_kid_is_unbiased_at_any_count_and_0_on_average_for_one_distribution(refer: Refer) -> None:
    random = np.random.default_rng(0)
    metric = KID(reference=refer(random.normal(size=(2000, 2))))
    for count in (3, 30):
        found = [whole(metric, samples(random.normal(size=(count, 2)))) for _ in range(400)]
        assert abs(np.mean(found)) < 4 * np.std(found) / 20
        assert min(found) < 0


def test_kid_of_a_linear_kernel_is_the_distance_of_means_in_expectation(refer: Refer) -> None:
    # Degree 1: the squared distance of means over D, less what is due to the count.
    real, made = RANDOM.normal(size=(40, 4)), RANDOM.normal(3, 1, size=(30, 4))
    away = ((real.mean(0) - made.mean(0)) ** 2).sum()
    due = sum(rows.var(0, ddof=1).sum() / len(rows) for rows in (real, made))
    assert whole(KID(reference=refer(real), degree=1), samples(made)) == pytest.approx((away - due) / 4, rel=1e-5)


def test_a_sample_that_is_drawn_twice_makes_no_pair_with_itself(refer: Refer) -> None:
    made = samples(RANDOM.normal(size=(20, 3)))
    statistic = KID(reference=refer(RANDOM.normal(size=(30, 3)))).prepare(made)
    doubled = np.repeat(np.arange(20), 2)
    assert statistic(doubled) == pytest.approx(statistic(np.arange(20)), abs=1e-12)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_neighbours_are_those_of_prdc_on_the_same_features(k: int, refer: Refer) -> None:
    real, made = (RANDOM.normal(place, 1, size=(size, 6)).astype(np.float32) for place, size in ((0, 80), (0.7, 50)))
    expected = compute_prdc(real.astype(np.float64), made.astype(np.float64), nearest_k=k)
    reference = refer(real)
    for name, kind in NEIGHBOURS.items():
        found = whole(kind(reference=reference, k=k), samples(made))
        assert found == pytest.approx(float(expected[name]), abs=1e-6), name


@pytest.mark.parametrize(
    ("made", "precision", "recall"),
    [
        (clusters(0, 1, 2, 3, seed=1), 1.0, 1.0),  # all kinds
        (clusters(0, 1, seed=1), 1.0, 0.5),  # half of the kinds: nothing wrong, half is missing
        (clusters(0, 1, 2, 3, 8, 9, 10, 11, seed=1), 0.5, 1.0),  # all kinds, and as many that are wrong
        (clusters(8, 9, seed=1), 0.0, 0.0),  # nothing of it
    ],
)
def test_known_mixtures_have_known_precision_and_recall(
    made: np.ndarray, precision: float, recall: float, refer: Refer
) -> None:
    reference = refer(clusters(0, 1, 2, 3))
    for kind, expected in ((Precision, precision), (Recall, recall), (Coverage, recall)):
        assert whole(kind(reference=reference), samples(made)) == pytest.approx(expected, abs=0.15 if expected else 0)
    assert whole(Density(reference=reference), samples(made)) == pytest.approx(precision, abs=0.25 if precision else 0)


def test_a_reference_measured_with_itself_is_all_in_it(refer: Refer) -> None:
    rows = RANDOM.normal(size=(60, 5))
    for kind in (Precision, Recall, Coverage):
        assert whole(kind(reference=refer(rows)), samples(rows)) == 1


def test_radii_leave_the_point_itself_out_even_where_it_has_an_equal() -> None:
    points = np.array([[0.0], [0.0], [1.0], [5.0]])
    assert radii(points, 1).tolist() == [0, 0, 1, 4]
    assert radii(points, 2).tolist() == [1, 1, 1, 5]


@pytest.mark.parametrize("kind", [Recall, Coverage])
def test_a_sample_that_is_drawn_twice_widens_nothing(kind: type, refer: Refer) -> None:
    statistic = kind(reference=refer(RANDOM.normal(size=(60, 3)))).prepare(samples(RANDOM.normal(size=(30, 3))))
    assert statistic(np.repeat(np.arange(20), 3)) == statistic(np.arange(20))


@pytest.mark.parametrize(("kind", "least"), [(Recall, 4), (Coverage, 1), (Precision, 1)])
def test_too_few_samples_are_refused_with_the_number_that_is_needed(kind: type, least: int, refer: Refer) -> None:
    metric = kind(reference=refer(RANDOM.normal(size=(60, 3))))
    assert 0 <= whole(metric, samples(RANDOM.normal(size=(least, 3)))) <= 1
    with pytest.raises(TooFewError, match=f"needs {least} samples at least; got {least - 1}"):
        metric.prepare(samples(np.zeros((least - 1, 3))))


def test_features_of_another_network_are_refused(refer: Refer) -> None:
    with pytest.raises(InputError, match="features of 4 numbers; those of the reference have 3"):
        KID(reference=refer(np.zeros((9, 3)))).prepare(samples(np.zeros((9, 4))))


def test_counts_are_in_the_names_of_what_depends_on_them() -> None:
    counted = {
        text: "samples=9" in parse_metric(text).named(9) for text in ("kid", "precision", "density", *NEIGHBOURS)
    }
    assert counted == {"kid": False, "precision": False, "density": False, "recall": True, "coverage": True}
    assert parse_metric("recall(k=5)").full_name.endswith("reference=emoji-1716-all, k=5]")
    assert parse_metric("kid").note(49) == "49 samples; 50 are wanted at least"
    assert parse_metric("kid").note(50) == ""


def test_diversity_is_the_mean_over_prompts_of_the_angle_within_each() -> None:
    features = [[1, 0], [0, 2], [3, 0], [3, 0], [3, 0], [1, 1]]
    made = samples(features, [0, 0, 1, 1, 1, 2])  # a right angle; three times the same; a single one
    statistic = Diversity().prepare(made)
    assert statistic(np.arange(6)) == pytest.approx(0.5)
    assert statistic(np.array([0, 1])) == pytest.approx(1.0)
    assert statistic(np.array([0, 1, 0, 1, 2, 3, 4])) == pytest.approx(2 / 3)  # a prompt counts as often as it comes


def test_vendi_counts_unlike_images() -> None:
    made = samples([[1, 0, 0], [0, 2, 0], [0, 0, 3], [1, 1, 0], [2, 2, 0], [4, 4, 0]], [0, 0, 0, 1, 1, 1])
    statistic = Vendi().prepare(made)
    assert statistic(np.arange(3)) == pytest.approx(3)
    assert statistic(np.arange(3, 6)) == pytest.approx(1)
    assert statistic(np.arange(6)) == pytest.approx(2)


def test_one_seed_a_prompt_has_no_diversity() -> None:
    with pytest.raises(TooFewError, match="diversity needs two seeds of a prompt at least"):
        Diversity().prepare(samples(np.eye(3)))
