"""The kernel distance of features."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ...guidance import fields
from .. import references
from .base import AgainstReference, Rows, Samples, Statistic, need
from .registry import register

Matrix = NDArray[np.float64]
CHUNK = 1024  # rows of a kernel at a time where only its sums are wanted


def kernel(one: Matrix, other: Matrix, degree: int) -> Matrix:
    """``(<x, y> / D + 1)^degree`` of all pairs: shapes ``(N, D)`` and ``(M, D)`` give ``(N, M)``."""
    similar: Matrix = (one @ other.T / one.shape[1] + 1) ** degree
    return similar


@register("kid")
@dataclass(frozen=True)
class KID(AgainstReference):
    """Squared maximum mean discrepancy of features to those of the reference under a polynomial kernel.

    Bińkowski et al. 2018 (arXiv:1801.01401), the unbiased estimator: its expectation does not depend on the number of
    samples, and it may be below 0. Over all pairs, not as a mean over random blocks of 1,000: the same expectation, a
    smaller variance, and no random numbers.

    Args:
        degree: of the kernel.
    """

    better: ClassVar[str] = "down"
    fewest: ClassVar[int] = 50

    degree: int = 3

    def __post_init__(self) -> None:
        fields.whole(self, "degree", 1)

    def prepare(self, samples: Samples) -> Statistic:
        """A function from rows to the distance of these samples; a repeated sample makes no pair with itself."""
        need(len(samples), 2, "an unbiased distance")
        need(len(self.target(samples)), 2, "a reference")
        rows = samples.features.astype(np.float64)
        target, there = _reference(self.reference, self.extractor, references.full_name(self.reference), self.degree)
        across = np.concatenate([kernel(part, target, self.degree).mean(1) for part in _parts(rows)])
        here = kernel(rows, rows, self.degree)
        diagonal = here.diagonal().copy()

        def of(chosen: Rows) -> float:
            weights = np.bincount(chosen, minlength=len(rows)).astype(np.float64)
            pairs = weights.sum() ** 2 - (weights**2).sum()
            used = np.flatnonzero(weights)
            part = weights[used]
            inside = part @ here[np.ix_(used, used)] @ part - (weights**2 * diagonal).sum()
            return float(inside / pairs + there - 2 * (weights @ across) / weights.sum()) if pairs else float("nan")

        return of


@functools.lru_cache(maxsize=8)
def _reference(reference: str, extractor: str, name: str, degree: int) -> tuple[Matrix, float]:
    """A reference's features, and the mean kernel of its pairs."""
    target = references.features(reference, extractor).astype(np.float64)
    total = sum(float(kernel(part, target, degree).sum()) for part in _parts(target))
    own = float((((target**2).sum(1) / target.shape[1] + 1) ** degree).sum())
    return target, (total - own) / (len(target) * (len(target) - 1))


def _parts(rows: Matrix) -> list[Matrix]:
    return [rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK)]
