"""The harvested pictures: 64x64 with transparency, and their names."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from ...guidance.files import replacing
from .vocabulary import BACKGROUNDS, Drawing

Pixels = NDArray[np.uint8]


def save(folder: Path, pixels: Pixels, drawings: list[Drawing]) -> None:
    """Write pictures, shape ``(N, 64, 64, 4)``, and their names."""
    with replacing(folder / "pictures.safetensors") as path:
        save_file({"rgba": pixels}, path)
    with replacing(folder / "pictures.json") as path:
        path.write_text(json.dumps([asdict(drawing) for drawing in drawings], indent=1))


def load(folder: Path, slugs: tuple[str, ...] | None = None) -> tuple[Pixels, list[Drawing]]:
    """The pictures, shape ``(N, 64, 64, 4)``, and their names; of the concepts `slugs` only, if given."""
    pixels = load_file(folder / "pictures.safetensors")["rgba"]
    rows = json.loads((folder / "pictures.json").read_text())
    drawings = [Drawing(row["slug"], row["label"], tuple(row["tags"]), row["style"]) for row in rows]
    if slugs is None:
        return pixels, drawings
    wanted = set(slugs)
    kept = [index for index, drawing in enumerate(drawings) if drawing.slug in wanted]
    return pixels[kept], [drawings[index] for index in kept]


def on_background(rgba: Pixels, colour: tuple[int, int, int]) -> NDArray[np.float32]:
    """Composite pictures ``(..., 4)`` on a colour: ``(..., 3)`` in [0, 1]."""
    opacity = rgba[..., 3:].astype(np.float32) / 255
    shown = rgba[..., :3].astype(np.float32) / 255 * opacity + np.array(colour, np.float32) / 255 * (1 - opacity)
    return shown.astype(np.float32, copy=False)


def to_tensor(images: NDArray[np.float32]) -> torch.Tensor:
    """Pictures ``(N, H, W, 3)`` in [0, 1] as the networks take them: ``(N, 3, H, W)`` in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous() * 2 - 1


def border(pictures: NDArray[np.float32], width: int = 3) -> NDArray[np.float32]:
    """Median colour of the border of pictures ``(N, H, W, 3)``: ``(N, 3)``."""
    mask = np.ones(pictures.shape[1:3], bool)
    mask[width:-width, width:-width] = False
    return np.median(pictures[:, mask], axis=1).astype(np.float32)


def nearest_colour(colours: NDArray[np.float32]) -> list[str]:
    """The background word nearest to each colour ``(N, 3)`` in [0, 1]."""
    palette = np.array(list(BACKGROUNDS.values()), np.float32) / 255
    away = ((colours[:, None] - palette) ** 2).sum(-1)
    return [list(BACKGROUNDS)[index] for index in away.argmin(1)]
