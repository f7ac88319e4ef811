"""How unlike the images of one prompt are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from .. import extractors
from .base import Rows, Samples, SetMetric, Statistic, TooFewError
from .registry import register

Matrix = NDArray[np.float64]


def cosines(features: NDArray[np.float32]) -> Matrix:
    """The cosine of each pair of features, shape ``(N, N)``."""
    rows = features.astype(np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True).clip(1e-12)
    return rows @ rows.T


def apart(alike: Matrix) -> float:
    """The mean of 1 - cosine over the pairs."""
    count = len(alike)
    return float(1 - (alike.sum() - np.trace(alike)) / (count * (count - 1)))


def vendi(alike: Matrix) -> float:
    """``exp(-sum(l log l))`` over the eigenvalues l of ``alike / N``: N if nothing is alike, 1 if all is equal."""
    shares = np.linalg.eigvalsh(alike / len(alike)).clip(0)
    shares = shares[shares > 0]
    return float(np.exp(-(shares * np.log(shares)).sum()))


@dataclass(frozen=True)
class _WithinPrompts(SetMetric):
    better: ClassVar[str] = "up"

    extractor: str = extractors.DEFAULT

    def value(self, alike: Matrix) -> float:
        """The number of one prompt, from the cosines of its images."""
        raise NotImplementedError

    def prepare(self, samples: Samples) -> Statistic:
        """A function from rows to the mean over their prompts; the rows have all images of a prompt or none."""
        worth, share = np.full(len(samples), np.nan), np.zeros(len(samples))
        for prompt in np.unique(samples.prompts):
            rows = np.flatnonzero(samples.prompts == prompt)
            if len(rows) > 1:
                worth[rows], share[rows] = self.value(cosines(samples.features[rows])), 1 / len(rows)
        if not share.any():
            raise TooFewError(f"{self.name} needs two seeds of a prompt at least; got one of each")

        def of(chosen: Rows) -> float:
            weights = share[chosen]
            return float(np.nansum(worth[chosen] * weights) / weights.sum()) if weights.any() else math.nan

        return of


@register("diversity")
@dataclass(frozen=True)
class Diversity(_WithinPrompts):
    """Mean of 1 - cosine of the features of two images of one prompt, over its pairs of seeds, then over prompts.

    Args:
        extractor: of the features.
    """

    range: ClassVar[tuple[float, float]] = (0.0, 2.0)

    def value(self, alike: Matrix) -> float:
        """The mean of 1 - cosine over the pairs of one prompt's images."""
        return apart(alike)


@register("vendi")
@dataclass(frozen=True)
class Vendi(_WithinPrompts):
    """Vendi score of the images of one prompt, averaged over prompts: how many unlike images there are among them.

    Friedman and Dieng 2023 (arXiv:2210.02410) with the cosine of the features; between 1 and the number of seeds, which
    is part of its name.

    Args:
        extractor: of the features.
    """

    range: ClassVar[tuple[float, float]] = (1.0, math.inf)

    def named(self, samples: int, prompts: int = 1) -> str:
        """The whole name of a number of so many images of each prompt, on average."""
        return f"{self.name}[{', '.join([*self.described(), f'seeds={samples / prompts:g}'])}]"

    def value(self, alike: Matrix) -> float:
        """The Vendi score of one prompt's images."""
        return vendi(alike)
