"""Which reference picture a generated one is nearest to, and with what confidence a share is known."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]


def shrink(pictures: Vectors, size: int = 16) -> Vectors:
    """Pictures ``(N, H, W, 3)`` as vectors ``(N, size * size * 3)``: averages of equal squares."""
    count, height, width, channels = pictures.shape
    squares = pictures.reshape(count, size, height // size, size, width // size, channels)
    vectors: Vectors = squares.mean((2, 4)).reshape(count, -1)
    return vectors


def order(made: Vectors, references: Vectors) -> NDArray[np.intp]:
    """References by their Euclidean distance, nearest first: ``(N, D)`` and ``(R, D)`` give ``(N, R)``."""
    away = (made**2).sum(1)[:, None] - 2 * made @ references.T + (references**2).sum(1)
    ranked: NDArray[np.intp] = away.argsort(1, kind="stable")
    return ranked


@dataclass(frozen=True)
class Share:
    """How often something was right.

    Args:
        right: times it was.
        of: times it was asked.
    """

    right: int
    of: int

    @property
    def value(self) -> float:
        """The share, in [0, 1]."""
        return self.right / self.of

    def interval(self, z: float = 1.959964) -> tuple[float, float]:
        """Wilson's interval, at 95% unless told: it stays within [0, 1] at shares near them."""
        width = 1 + z**2 / self.of
        middle = (self.value + z**2 / (2 * self.of)) / width
        half = z / width * math.sqrt(self.value * (1 - self.value) / self.of + z**2 / (4 * self.of**2))
        return max(0.0, middle - half), min(1.0, middle + half)

    def to_json(self) -> dict[str, float]:
        """Plain numbers."""
        low, high = self.interval()
        return {"right": self.right, "of": self.of, "share": self.value, "low": low, "high": high}
