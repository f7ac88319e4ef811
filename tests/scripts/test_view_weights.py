"""View-dependent weights of Perp-Neg: published values, and shape in the azimuth."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from guidestack import PerpNeg
from guidestack.scripts.dev.figures.view_weights import NEGATIVE_VIEWS, POSITIVE_VIEWS, VARIANTS, views

JUST = 1e-9  # degrees beside a border
both = pytest.mark.parametrize("variant", list(VARIANTS))
angles = st.floats(-1e6, 1e6)


def front(azimuth: float, variant: Any, elevation: float = 0.0) -> float:
    return views(azimuth, elevation, variant=variant).negative[NEGATIVE_VIEWS.index("front")]


def side(azimuth: float, variant: Any, elevation: float = 0.0) -> float:
    return views(azimuth, elevation, variant=variant).negative[NEGATIVE_VIEWS.index("side")]


@pytest.mark.parametrize(
    ("azimuth", "of_front", "of_side"),
    [
        (0, 0.000, 1.574),
        (45, 4 * math.exp(-0.25) - 2.426, 4 * math.exp(-0.25) - 2.426),
        (90 - JUST, 1.574, 0.000),
        (90, 1.5735, 0.0005),
        (135, math.exp(-0.25) + 0.967, math.exp(-0.25) - 0.606),
        (180, 1.967, 0.394),
    ],
)
def test_shifted_has_the_published_strengths(azimuth: float, of_front: float, of_side: float) -> None:
    assert views(azimuth, variant="shifted").negative == pytest.approx((of_front, of_side), abs=2e-4)


@pytest.mark.parametrize(
    ("azimuth", "of_front", "of_side"),
    [
        (0, 0, 2),
        (9, 0, 2 * math.exp(-1)),
        (45, 2 * math.exp(-1), 2 * math.exp(-5)),
        (81, 2 * math.exp(-0.2), 0),
        (90, 2, 0),
        (100, 2, 0),
        (135, 2, math.exp(-5)),
        (180, 2, 1),
    ],
)
def test_cutoff_has_the_published_strengths(azimuth: float, of_front: float, of_side: float) -> None:
    assert views(azimuth, variant="cutoff").negative == pytest.approx((of_front, of_side), abs=1e-12)


@pytest.mark.parametrize("sign", [1, -1])
def test_cutoff_jumps_at_its_cut_offs(sign: int) -> None:
    """To 0 on the side of the view itself; on the border the strength still stands."""
    for of, border, inward, height in (
        (front, 18, -1, 2 * math.exp(-1.6)),
        (side, 72, 1, 2 * math.exp(-8)),
        (side, 108, -1, math.exp(-8)),
    ):
        assert of(sign * border, "cutoff") == pytest.approx(height, rel=1e-12)
        assert of(sign * (border + inward * JUST), "cutoff") == 0
    assert front(sign * 18, "cutoff") == pytest.approx(0.404, abs=5e-4)


def test_cutoff_is_continuous_elsewhere() -> None:
    for border in (0, 90, 180):
        left, right = (views(border + step, variant="cutoff").negative for step in (-JUST, JUST))
        assert left == pytest.approx(right, abs=1e-6)


def test_shifted_is_continuous() -> None:
    for border in (-180, -90, 0, 90):
        left, right = (views(border + step, variant="shifted").negative for step in (-JUST, JUST))
        assert left == pytest.approx(right, abs=5e-4)
    grid = [views(azimuth / 10, variant="shifted").negative for azimuth in range(-1800, 1801)]
    assert max(abs(a - b) for one, two in pairwise(grid) for a, b in zip(one, two)) < 0.01


@pytest.mark.parametrize(
    ("azimuth", "shares"),
    [(0, (1, 0, 0)), (30, (2 / 3, 1 / 3, 0)), (90, (0, 1, 0)), (120, (0, 2 / 3, 1 / 3)), (180, (0, 0, 1))],
)
@both
def test_positive_shares(variant: str, azimuth: float, shares: tuple[float, ...]) -> None:
    assert len(shares) == len(POSITIVE_VIEWS)
    assert views(azimuth, variant=variant).positive == pytest.approx(shares)


@both
@settings(max_examples=100, deadline=None, derandomize=True)
@given(azimuth=angles, elevation=st.floats(-90, 90))
@example(azimuth=90.0, elevation=0.0)
@example(azimuth=-180.0, elevation=90.0)
@example(azimuth=math.nextafter(-180, -181), elevation=0.0)
def test_what_holds_everywhere(variant: str, azimuth: float, elevation: float) -> None:
    found = views(azimuth, elevation, variant=variant)
    assert sum(found.positive) == pytest.approx(1, abs=1e-15)
    assert all(0 <= share <= 1 for share in found.positive)
    assert all(0 <= strength <= 2 for strength in found.negative)
    assert found == views(-azimuth, elevation, variant=variant)


@both
@settings(max_examples=100, deadline=None, derandomize=True)
@given(azimuth=st.integers(-720, 720), turns=st.integers(-1000, 1000))
def test_periodic(variant: str, azimuth: int, turns: int) -> None:
    assert views(azimuth + 360 * turns, variant=variant) == views(azimuth, variant=variant)


@pytest.mark.parametrize("azimuth", [0, 50, -120, 180])
def test_overhead(azimuth: float) -> None:
    above, at = (views(azimuth, elevation, variant="shifted") for elevation in (60 + JUST, 60))
    assert above.overhead
    assert above.negative == (0, 0)
    assert above.positive == at.positive
    assert at == views(azimuth, variant="shifted") == views(azimuth, -90, variant="shifted")
    assert not at.overhead
    assert views(azimuth, 90, variant="cutoff") == views(azimuth, variant="cutoff")


@both
def test_perp_neg_takes_them(variant: str) -> None:
    found = views(30, variant=variant).negative
    assert PerpNeg(100, weights=found).weights == found
