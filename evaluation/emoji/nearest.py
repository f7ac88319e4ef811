"""Which reference picture a generated one is nearest to."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

Vectors = NDArray[np.float32]


def shrink(pictures: Vectors, size: int = 16) -> Vectors:
    """Pictures ``(N, H, W, 3)`` as vectors ``(N, size * size * 3)``: averages of equal squares."""
    count, height, width, channels = pictures.shape
    squares = pictures.reshape(count, size, height // size, size, width // size, channels)
    vectors: Vectors = squares.mean((2, 4)).reshape(count, -1)
    return vectors


def units(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """The features, shape ``(N, D)``, with rows of length 1."""
    return torch.nn.functional.normalize(torch.from_numpy(features), dim=1).numpy()


def order(made: Vectors, references: Vectors) -> NDArray[np.intp]:
    """References by their Euclidean distance, nearest first: ``(N, D)`` and ``(R, D)`` give ``(N, R)``."""
    away = (made**2).sum(1)[:, None] - 2 * made @ references.T + (references**2).sum(1)
    ranked: NDArray[np.intp] = away.argsort(1, kind="stable")
    return ranked


@dataclass(frozen=True)
class Place:
    """Where a concept comes among the references, nearest first.

    Args:
        picture: the first picture that shows it; 0 is the nearest of all.
        concept: the concept among the distinct ones; 0 is the nearest.
        style: of the nearest of its own pictures.
    """

    picture: int
    concept: int
    style: str


def place(nearest: NDArray[np.intp], slugs: NDArray[np.str_], styles: NDArray[np.str_], slug: str) -> Place:
    """Where the concept `slug` comes among the references.

    Args:
        nearest: the references in order, as a row of `order`.
        slugs: concept of each reference.
        styles: style of each reference.
        slug: one of the concepts.
    """
    found = slugs[nearest]
    first = int(np.argmax(found == slug))
    return Place(first, len(set(found[:first].tolist())), str(styles[nearest[first]]))
