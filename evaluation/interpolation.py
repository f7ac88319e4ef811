"""Paths between two noises, and how evenly images change along them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..guidance.errors import InputError


def slerp(one: Tensor, other: Tensor, at: float) -> Tensor:
    r"""A point of the great circle from one noise to another.

    .. math:: \frac{\sin((1 - t)\theta)}{\sin\theta}\, a + \frac{\sin(t\theta)}{\sin\theta}\, b,\qquad
        \cos\theta = \frac{\langle a, b\rangle}{\lVert a\rVert\,\lVert b\rVert}

    Args:
        one: a, of any shape; one sample.
        other: b, of the same shape.
        at: t in [0, 1]; 0 gives a, 1 gives b.

    Returns:
        The point; for two normal noises about as long as they are. The straight line where the two are parallel.
    """
    a, b = one.flatten().double(), other.flatten().double()
    angle = torch.acos((a @ b / (a.norm() * b.norm())).clamp(-1, 1))
    sine = torch.sin(angle)
    parallel = sine < 1e-6
    safe = torch.where(parallel, torch.ones_like(sine), sine)
    first = torch.where(parallel, 1 - at, torch.sin((1 - at) * angle) / safe)
    second = torch.where(parallel, at, torch.sin(at * angle) / safe)
    return (first * a + second * b).to(one.dtype).reshape(one.shape)


def path(one: Tensor, other: Tensor, points: int) -> Tensor:
    """Evenly spaced points of `slerp`, both ends included, shape ``(points, *one.shape)``.

    Raises:
        InputError: fewer than three points.
    """
    if points < 3:
        raise InputError(f"a path has 3 points at least; got {points}")
    return torch.stack([slerp(one, other, place / (points - 1)) for place in range(points)])


def istd(images: Sequence[NDArray[np.generic]] | NDArray[np.generic]) -> float:
    r"""The interpolation standard deviation: how unevenly images change along a path of evenly spaced noises.

    .. math:: \operatorname{std}_i\, \lVert x_{i+1} - x_i\rVert

    Args:
        images: of the points in order, each of any one shape: pixels, or features.

    Returns:
        The standard deviation of the distances of neighbours, in the unit of the images' Euclidean distance; 0 where
        all steps are equally long, as of a linear map along a straight path.

    Raises:
        InputError: fewer than three images.

    References:
        Guo et al., "Smooth Diffusion: Crafting Smooth Latent Spaces in Diffusion Models", arXiv:2312.04410.

    >>> istd(np.array([[0.0], [1.0], [2.0]])), istd(np.array([[0.0], [1.0], [4.0]]))
    (0.0, 1.0)
    """
    rows = np.asarray(images, np.float64).reshape(len(images), -1)
    if len(rows) < 3:
        raise InputError(f"the steps along a path of {len(rows)} images cannot be compared; give 3 images at least")
    steps = np.sqrt(np.square(np.diff(rows, axis=0)).sum(1))
    deviation = float(steps.std())
    return deviation if math.isfinite(deviation) else math.nan
