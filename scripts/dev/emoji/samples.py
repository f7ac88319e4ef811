"""Grids of pictures: how the model looks to a person."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ....evaluation.emoji.vocabulary import concepts
from ....guidance.files import replacing
from . import harvested, sampling
from .measure import requests


def grid(images: NDArray[np.float32], columns: int, enlarge: int = 2) -> Image.Image:
    """Pictures ``(N, H, W, 3)`` in [0, 1] in rows of `columns`."""
    count, height, width, _ = images.shape
    rows = -(-count // columns)
    filled = np.ones((rows * columns, height, width, 3), np.float32)
    filled[:count] = images
    joined = filled.reshape(rows, columns, height, width, 3).transpose(0, 2, 1, 3, 4)
    picture = Image.fromarray((joined.reshape(rows * height, columns * width, 3) * 255).round().astype(np.uint8))
    return picture.resize((picture.width * enlarge, picture.height * enlarge), Image.Resampling.NEAREST)


def samples(work: Path, folder: Path, count: int, seed: int, scale: float, steps: int, to: Path) -> list[str]:
    """Write a grid of requests drawn at random as PNG; returns their prompts, row by row of 8."""
    _, drawings = harvested.load(work, concepts())
    prompts = [request.prompt for request in requests(drawings, count, seed)]
    made = sampling.generate(sampling.load(folder), prompts, seed, scale, steps)
    with replacing(to) as path:
        grid(made, columns=8).save(path, format="PNG")
    return prompts
