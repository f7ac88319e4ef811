"""Paths between two noises: great circles, and how evenly images change along them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from guidestack.evaluation.interpolation import istd, path, slerp
from guidestack.guidance.errors import InputError


def test_a_path_is_of_equal_angles_and_equal_lengths_and_has_both_ends() -> None:
    a, b = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    b = b * (a.norm() / b.norm())
    points = path(a, b, 7)
    assert points.shape == (7, 4, 8, 8)
    torch.testing.assert_close(points[0], a)
    torch.testing.assert_close(points[-1], b)
    flat = points.flatten(1)
    torch.testing.assert_close(flat.norm(dim=1), a.norm().expand(7))
    angles = torch.acos((flat[1:] * flat[:-1]).sum(1) / a.norm() ** 2)
    torch.testing.assert_close(angles, angles[0].expand(6))
    middle = (a + b) / (2 * torch.cos(angles.sum() / 2))  # by hand, of equal lengths
    torch.testing.assert_close(points[3], middle)


def test_a_point_keeps_its_type_and_parallel_noises_have_a_straight_line_between_them() -> None:
    a = torch.ones(3, dtype=torch.float16)
    assert slerp(a, 3 * a, 0.25).dtype == torch.float16
    assert slerp(a, 3 * a, 0.25).tolist() == [1.5] * 3


def test_istd_is_the_deviation_of_the_steps() -> None:
    steps = np.array([1.0, 2.0, 4.0])
    images = np.concatenate([[0.0], steps.cumsum()])[:, None] * np.array([0.6, 0.8])
    assert istd(images.reshape(4, 1, 2)) == pytest.approx(steps.std())
    assert istd(np.arange(12.0).reshape(4, 3)) == 0
    assert math.isnan(istd(np.array([0.0, np.nan, 1.0])))


def test_two_points_are_no_path() -> None:
    with pytest.raises(InputError, match="3 points at least; got 2"):
        path(torch.zeros(2), torch.ones(2), 2)
    with pytest.raises(InputError, match="give 3 images at least"):
        istd(np.zeros((2, 4)))
