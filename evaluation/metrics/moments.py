"""Means and covariances that are gathered batch by batch, in float64, and merged across processes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .base import Features

Matrix = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Moments:
    """The first two moments of some vectors.

    Args:
        count: of the vectors.
        mean: shape ``(D,)``.
        scatter: the sum of the products of deviations from the mean, shape ``(D, D)``.
    """

    count: int
    mean: Matrix
    scatter: Matrix

    @classmethod
    def of(cls, features: NDArray[Any]) -> Moments:
        """Those of rows, shape ``(N, D)``."""
        rows = np.asarray(features, np.float64)
        if not len(rows):
            return cls(0, np.zeros(rows.shape[1]), np.zeros((rows.shape[1],) * 2))
        mean = rows.mean(0)
        away = rows - mean
        return cls(len(rows), mean, away.T @ away)

    def merged(self, other: Moments) -> Moments:
        """Those of both sets together (Chan, Golub and LeVeque 1979): nothing is lost where means are large."""
        count = self.count + other.count
        if not count:
            return self
        away = other.mean - self.mean
        mean = self.mean + away * (other.count / count)
        between = np.outer(away, away) * (self.count * other.count / count)
        return Moments(count, mean, self.scatter + other.scatter + between)

    @property
    def covariance(self) -> Matrix:
        """The unbiased covariance, shape ``(D, D)``; zeros of fewer than two vectors."""
        return self.scatter / max(1, self.count - 1)


def gathered(batches: Iterable[Features], dimensions: int) -> Moments:
    """The moments of batches of rows, one after the other: memory does not depend on how many come."""
    total = Moments.of(np.zeros((0, dimensions), np.float32))
    for batch in batches:
        total = total.merged(Moments.of(batch))
    return total
