"""The harvested pictures with their names, as tensors, and the captions that the denoiser learns them by."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from ....evaluation.emoji.pictures import Pixels
from ....evaluation.emoji.vocabulary import BACKGROUNDS, STYLES, caption, concepts
from ....guidance.files import replacing, write_whole

EMPTY = 0.10  # share of empty captions, which guidance needs
WITH_STYLE = 0.90
WITH_BACKGROUND = 0.92
WITH_TAGS = 0.15


@dataclass(frozen=True)
class Drawing:
    """One picture of the harvest.

    Args:
        slug: its concept, a key of the icon sets, e.g. ``cat-face``.
        label: the concept's name, e.g. ``cat face``.
        tags: words that people search it by.
        style: one of `STYLES`.
    """

    slug: str
    label: str
    tags: tuple[str, ...]
    style: str


def save(folder: Path, pixels: Pixels, drawings: list[Drawing]) -> None:
    """Write pictures, shape ``(N, 64, 64, 4)``, and their names."""
    with replacing(folder / "pictures.safetensors") as path:
        save_file({"rgba": pixels}, path)
    write_whole(folder / "pictures.json", json.dumps([asdict(drawing) for drawing in drawings], indent=1))


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


def to_tensor(images: NDArray[np.float32]) -> torch.Tensor:
    """Pictures ``(N, H, W, 3)`` in [0, 1] as the networks take them: ``(N, 3, H, W)`` in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous() * 2 - 1


def random_prompts(count: int, seed: int) -> list[str]:
    """Prompts drawn evenly and independently over concepts, styles and backgrounds; a prefix of any longer list."""
    random_ = random.Random(seed)
    labels = [slug.replace("-", " ") for slug in concepts()]
    return [
        caption(random_.choice(labels), random_.choice(list(STYLES)), random_.choice(list(BACKGROUNDS)))
        for _ in range(count)
    ]


def training_caption(drawing: Drawing, background: str, random_: random.Random) -> str:
    """A caption as the denoiser sees it: parts left out, the label with or replaced by tags, now and then empty."""
    if random_.random() < EMPTY:
        return ""
    words = drawing.label
    if drawing.tags and random_.random() < WITH_TAGS:
        tags: Sequence[str] = random_.sample(drawing.tags, min(len(drawing.tags), random_.choice((2, 3))))
        words = " ".join([words, *tags] if random_.random() < 0.5 else tags)
    style = drawing.style if random_.random() < WITH_STYLE else None
    return caption(words, style, background if random_.random() < WITH_BACKGROUND else None)
