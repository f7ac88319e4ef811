"""Ship the pictures that the denoiser learns: the references of metrics."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from ....evaluation.emoji.pictures import Pixels
from ....evaluation.emoji.vocabulary import concepts
from ....evaluation.references import COLUMNS, HERE, TILE
from ....guidance.files import replacing, write_whole
from . import harvested


def references(work: Path) -> str:
    """Write the pictures of the 429 concepts into ``evaluation/references``; says how many. About a minute."""
    rgba, drawings = harvested.load(work, concepts())
    write(rgba, [drawing.slug for drawing in drawings], [drawing.style for drawing in drawings], HERE)
    return f"{len(rgba)} pictures in {HERE}"


def write(rgba: Pixels, slugs: list[str], styles: list[str], to: Path) -> None:
    """Write the pictures as they ship: one sheet without loss, and the names in its order.

    Args:
        rgba: shape ``(N, 64, 64, 4)``, those of a concept beside one another.
        slugs: concept of each.
        styles: style of each.
        to: the folder.
    """
    told: dict[str, list[str]] = {}
    for slug, style in zip(slugs, styles, strict=True):
        told.setdefault(slug, []).append(style)
    rows = -(-len(rgba) // COLUMNS)
    filled = np.zeros((rows * COLUMNS, TILE, TILE, 4), np.uint8)
    filled[: len(rgba)] = rgba
    sheet = filled.reshape(rows, COLUMNS, TILE, TILE, 4).swapaxes(1, 2).reshape(rows * TILE, COLUMNS * TILE, 4)
    with replacing(to / "emoji.webp") as path:
        Image.fromarray(sheet).save(path, format="WEBP", lossless=True, quality=100, method=6, exact=True)
    write_whole(to / "emoji.json", json.dumps(told) + "\n")
