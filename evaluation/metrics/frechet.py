"""The Fréchet distance between Gaussians fitted to features."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ...guidance.words import counted
from .. import extractors, references
from .base import AgainstReference, Rows, Samples, Statistic, need
from .registry import register

Matrix = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Moments:
    """The first two moments of some vectors, in float64.

    Args:
        mean: shape ``(D,)``.
        covariance: unbiased, shape ``(D, D)``; zeros for fewer than two vectors.
    """

    mean: Matrix
    covariance: Matrix

    @classmethod
    def of(cls, features: NDArray[Any]) -> Moments:
        """The moments of the rows of `features`, shape ``(N, D)``."""
        rows = np.asarray(features, np.float64)
        mean = rows.mean(0)
        away = rows - mean
        return cls(mean, away.T @ away / max(1, len(rows) - 1))


def roots(eigenvalues: NDArray[Any]) -> Matrix:
    """The square roots of a positive semidefinite matrix's eigenvalues; those that are 0 but for rounding are 0.

    The root of a rounding error of 1e-16 is 1e-8, and there are as many of them as the matrix lacks rank.
    """
    least = len(eigenvalues) * np.finfo(np.float64).eps * np.abs(eigenvalues).max(initial=0.0)
    found: Matrix = np.sqrt(np.where(eigenvalues > least, eigenvalues, 0.0))
    return found


def root(covariance: Matrix) -> Matrix:
    """The symmetric square root of a positive semidefinite matrix, whatever its rank."""
    values, vectors = np.linalg.eigh(covariance)
    found: Matrix = (vectors * roots(values)) @ vectors.T
    return found


def distance(one: Moments, other: Moments, other_root: Matrix | None = None) -> float:
    """``|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))``, Heusel et al. 2017 (arXiv:1706.08500).

    The trace of the root is the sum of the roots of the eigenvalues of ``C2^(1/2) C1 C2^(1/2)``, which is symmetric and
    positive semidefinite at any rank: no matrix is inverted, and nothing added to a diagonal.

    Args:
        one: of a set of features.
        other: of another.
        other_root: the root of its covariance, if it is known.
    """
    half = root(other.covariance) if other_root is None else other_root
    common = roots(np.linalg.eigvalsh(half @ one.covariance @ half)).sum()
    away = one.mean - other.mean
    return float(away @ away + np.trace(one.covariance) + np.trace(other.covariance) - 2 * common)


@register("frechet")
@dataclass(frozen=True)
class Frechet(AgainstReference):
    """Fréchet distance of features to those of the reference; 0 where mean and covariance are equal.

    Biased upwards, by about 1 / N: numbers of different N are not comparable, and the name has N. With fewer samples
    than a feature has numbers, the covariance has not even full rank; the distance then serves to compare cells of one
    sweep, and nothing else.
    """

    better: ClassVar[str] = "down"
    range: ClassVar[tuple[float, float]] = (0.0, math.inf)
    counted: ClassVar[bool] = True
    fewest: ClassVar[int] = 1281  # with the default extractor; `note` knows others

    def prepare(self, samples: Samples) -> Statistic:
        """A function from rows to the distance of these samples to the reference."""
        need(len(samples), 2, "a covariance")
        self.target(samples)
        moments, half = _target(self.reference, self.extractor, references.full_name(self.reference))
        rows = samples.features.astype(np.float64)
        few = _of_few(rows, moments, half)
        return lambda chosen: (
            few(chosen) if len(chosen) < rows.shape[1] else distance(Moments.of(rows[chosen]), moments, half)
        )

    def note(self, samples: int) -> str:
        """A note if there are no more samples than the features have dimensions; "" otherwise."""
        dimensions = extractors.dimensions(self.extractor)
        if samples > dimensions:
            return ""
        told = f"{counted(samples, 'sample')} of {dimensions} features"
        return f"{told}: strongly biased upwards; compare cells of this sweep only"

    @property
    def compared(self) -> int:
        """Samples below which a difference between two cells tells nothing: the bias of equally many is the same."""
        return 50


@functools.lru_cache(maxsize=8)
def _target(reference: str, extractor: str, name: str) -> tuple[Moments, Matrix]:
    moments = Moments.of(references.features(reference, extractor))
    return moments, root(moments.covariance)


def _of_few(rows: Matrix, target: Moments, half: Matrix) -> Statistic:
    """The distance of fewer rows than dimensions: the same eigenvalues, from an N x N matrix of inner products."""
    turned = rows @ half
    spread = float(np.trace(target.covariance))

    def of(chosen: Rows) -> float:
        own, there = rows[chosen], turned[chosen]
        mean, free = own.mean(0), max(1, len(chosen) - 1)
        centred = there - there.mean(0)
        common = roots(np.linalg.eigvalsh(centred @ centred.T / free)).sum()
        away = mean - target.mean
        return float(away @ away + ((own - mean) ** 2).sum() / free + spread - 2 * common)

    return of
