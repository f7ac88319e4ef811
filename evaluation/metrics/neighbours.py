"""Precision, recall, density and coverage: where features lie among the nearest neighbours of others.

The ball of a point reaches to its k-th nearest neighbour in its own set, itself not counted.

* Precision: share of the images inside a ball of the reference. Recall: share of the reference inside a ball of the
  images. Kynkäänniemi et al. 2019 (arXiv:1904.06991), who take k = 3.
* Density: how many balls of the reference an image is inside, divided by k, on average. Coverage: share of the
  reference's balls with an image inside. Naeem et al. 2020 (arXiv:2002.09797), who take k = 5.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ...guidance import fields
from .. import references
from .base import AgainstReference, Rows, Samples, Statistic, need
from .registry import register

Matrix = NDArray[np.float64]
CHUNK = 1024  # rows of distances at a time


def distances(one: Matrix, other: Matrix) -> Matrix:
    """Euclidean distances of all pairs: shapes ``(N, D)`` and ``(M, D)`` give ``(N, M)``."""
    squared = (one**2).sum(1)[:, None] - 2 * one @ other.T + (other**2).sum(1)
    away: Matrix = np.sqrt(squared.clip(0))
    return away


def by_rows(one: Matrix, other: Matrix) -> Iterator[tuple[slice, Matrix]]:
    """The distances of `distances`, some rows of `one` at a time, with the rows."""
    for start in range(0, len(one), CHUNK):
        rows = slice(start, min(start + CHUNK, len(one)))
        yield rows, distances(one[rows], other)


def radii(points: Matrix, k: int) -> Matrix:
    """The distance of each point to its k-th nearest other one, shape ``(N,)``."""
    found = np.empty(len(points))
    for rows, away in by_rows(points, points):
        away[np.arange(len(away)), np.arange(rows.start, rows.stop)] = math.inf  # itself, however it was rounded
        found[rows] = np.partition(away, k - 1, axis=1)[:, k - 1]
    return found


@functools.lru_cache(maxsize=8)
def _reference(reference: str, extractor: str, name: str, k: int) -> tuple[Matrix, Matrix]:
    points = references.features(reference, extractor).astype(np.float64)
    return points, radii(points, k)


@dataclass(frozen=True)
class _Neighbours(AgainstReference):
    better: ClassVar[str] = "up"
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    fewest: ClassVar[int] = 50

    k: int = 5

    def __post_init__(self) -> None:
        fields.whole(self, "k", 1)

    def balls(self, samples: Samples) -> tuple[Matrix, Matrix, Matrix]:
        """The images' features, the reference's, and the radii of the reference's balls."""
        need(len(self.target(samples)), self.k + 1, f"a reference for k={self.k}")
        points, reach = _reference(self.reference, self.extractor, references.full_name(self.reference), self.k)
        return samples.features.astype(np.float64), points, reach


def _mean_of(values: Matrix) -> Statistic:
    return lambda chosen: float(values[chosen].mean())


@register("precision")
@dataclass(frozen=True)
class Precision(_Neighbours):
    """Share of the images that lie inside a ball of the reference: whether they look as those do.

    Args:
        k: neighbours to which a ball reaches.
    """

    share: ClassVar[bool] = True

    k: int = 3

    def prepare(self, samples: Samples) -> Statistic:
        """A function from rows to the share of these samples inside a ball of the reference."""
        need(len(samples), 1, "precision")
        rows, points, reach = self.balls(samples)
        return _mean_of(
            np.concatenate([(away <= reach).any(1) for _, away in by_rows(rows, points)]).astype(np.float64)
        )


@register("density")
@dataclass(frozen=True)
class Density(_Neighbours):
    """How many balls of the reference an image is inside, over k, on average; about 1 for the reference's own kind.

    Args:
        k: neighbours to which a ball reaches.
    """

    range: ClassVar[tuple[float, float]] = (0.0, math.inf)

    def prepare(self, samples: Samples) -> Statistic:
        """A function from rows to the mean number of balls around these samples, over k."""
        need(len(samples), 1, "density")
        rows, points, reach = self.balls(samples)
        counts = np.concatenate([(away <= reach).sum(1) for _, away in by_rows(rows, points)])
        return _mean_of(counts / self.k)


@register("recall")
@dataclass(frozen=True)
class Recall(_Neighbours):
    """Share of the reference that lies inside a ball of the images: whether all of its kinds are made.

    Balls shrink as images become more: numbers of different counts are not comparable, and the name has the count.

    Args:
        k: neighbours to which a ball reaches.
    """

    counted: ClassVar[bool] = True

    k: int = 3

    def prepare(self, samples: Samples) -> Statistic:
        """A function from rows to the share of the reference inside a ball of these samples; repeats count once."""
        need(len(samples), self.k + 1, f"recall with k={self.k}")
        rows, points, _ = self.balls(samples)
        own, across = distances(rows, rows), distances(points, rows)
        np.fill_diagonal(own, math.inf)

        def of(chosen: Rows) -> float:
            used = np.unique(chosen)
            if len(used) <= self.k:
                return float("nan")
            reach = np.partition(own[np.ix_(used, used)], self.k - 1, axis=1)[:, self.k - 1]
            return float((across[:, used] <= reach).any(1).mean())

        return of


@register("coverage")
@dataclass(frozen=True)
class Coverage(_Neighbours):
    """Share of the reference's balls with an image inside: whether all of its kinds are made.

    Rises with the number of images: numbers of different counts are not comparable, and the name has the count.

    Args:
        k: neighbours to which a ball reaches.
    """

    counted: ClassVar[bool] = True

    def prepare(self, samples: Samples) -> Statistic:
        """A function from rows to the share of the reference's balls with one of these samples inside."""
        need(len(samples), 1, "coverage")
        rows, points, reach = self.balls(samples)
        inside = np.concatenate([away <= reach for _, away in by_rows(rows, points)])
        return lambda chosen: float(inside[np.unique(chosen)].any(0).mean())
