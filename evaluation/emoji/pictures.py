"""Pictures of 64x64 pixels with transparency on backgrounds, and the background of a picture that was made."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .vocabulary import BACKGROUNDS

Pixels = NDArray[np.uint8]


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
