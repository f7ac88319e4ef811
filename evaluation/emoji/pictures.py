"""Pictures of 64x64 pixels on backgrounds, and what a picture that was made shows: background, nearest reference."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from .vocabulary import BACKGROUNDS

Pixels = NDArray[np.uint8]
Vectors = NDArray[np.float32]


def on_background(rgba: Pixels, colour: tuple[int, int, int]) -> NDArray[np.float32]:
    """Composite pictures ``(..., 4)`` on a colour: ``(..., 3)`` in [0, 1]."""
    opacity = rgba[..., 3:].astype(np.float32) / 255
    shown = rgba[..., :3].astype(np.float32) / 255 * opacity + np.array(colour, np.float32) / 255 * (1 - opacity)
    return shown.astype(np.float32, copy=False)


def border(pictures: NDArray[np.float32]) -> NDArray[np.float32]:
    """Median colour of the outer three pixels of pictures ``(N, H, W, 3)``: ``(N, 3)``."""
    mask = np.ones(pictures.shape[1:3], bool)
    mask[3:-3, 3:-3] = False
    return np.median(pictures[:, mask], axis=1).astype(np.float32)


def nearest_colour(colours: NDArray[np.float32]) -> list[str]:
    """The background word nearest to each colour ``(N, 3)`` in [0, 1]."""
    palette = np.array(list(BACKGROUNDS.values()), np.float32) / 255
    away = ((colours[:, None] - palette) ** 2).sum(-1)
    return [list(BACKGROUNDS)[index] for index in away.argmin(1)]


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
