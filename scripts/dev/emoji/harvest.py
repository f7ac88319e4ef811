"""Draw the training pictures from icon sets of the npm registry."""

from __future__ import annotations

import io
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
from PIL import Image
from tqdm import tqdm

from ....evaluation.emoji import pictures
from ....evaluation.emoji.vocabulary import STYLES
from . import harvested
from .harvested import Drawing

PACKAGES = {
    "@iconify-json/noto": "1.2.9",
    "@iconify-json/twemoji": "1.2.5",
    "@iconify-json/fluent-emoji-flat": "1.2.6",
    "@iconify-json/fluent-emoji": "1.2.7",
    "emojibase-data": "17.0.0",
}
GROUPS = {0, 1, 3, 4, 5, 6, 7, 8}  # smileys, people, animals, food, travel, activities, objects, symbols
SIZE, DRAWN = 64, 52  # pixels of the picture, and of the drawing within


def slug_of(label: str) -> str:
    """The key of an icon set for an emoji's label: ``"e-mail"`` stays, ``"cat face"`` becomes ``"cat-face"``."""
    return re.sub(r"[^a-z0-9]+", "-", label.lower().replace("’", "")).strip("-")


def install(work: Path) -> Path:
    """The packages at their pinned versions, in ``work/npm``; fetched if they are not there."""
    modules = work / "npm" / "node_modules"
    if not all((modules / name / "package.json").exists() for name in PACKAGES):
        (work / "npm").mkdir(parents=True, exist_ok=True)
        names = [f"{name}@{version}" for name, version in PACKAGES.items()]
        command = ["npm", "install", "--prefix", str(work / "npm"), "--no-save", "--ignore-scripts", *names]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise click.ClickException(f"npm install failed: {getattr(error, 'stderr', None) or error}") from error
    return modules


def emoji(modules: Path) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Slug, label and tags of every emoji of the groups, without skin tones."""
    for row in json.loads((modules / "emojibase-data/en/data.json").read_text()):
        if row.get("group") in GROUPS:
            yield slug_of(row["label"]), row["label"].lower(), tuple(tag.lower() for tag in row.get("tags", ()))


def draw(icons: dict[str, Any], slug: str) -> pictures.Pixels:
    """One icon as ``(64, 64, 4)``, the drawing in the middle, 52 pixels in its longer side."""
    from resvg_py import svg_to_bytes

    icon = icons["icons"][slug]
    width, height = (icon.get(side, icons.get(side, 16)) for side in ("width", "height"))
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">{icon["body"]}</svg>'
    png = bytes(svg_to_bytes(svg_string=svg, width=DRAWN, height=DRAWN, skip_system_fonts=True))
    drawing = np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"))
    top, left = ((SIZE - side) // 2 for side in drawing.shape[:2])
    canvas = np.zeros((SIZE, SIZE, 4), np.uint8)
    canvas[top : top + drawing.shape[0], left : left + drawing.shape[1]] = drawing
    return canvas


def harvest(work: Path) -> int:
    """Draw every emoji that an icon set has under its label, in every style; returns the number of pictures."""
    modules = install(work)
    sets = {style: json.loads((modules / package / "icons.json").read_text()) for style, package in STYLES.items()}
    todo = [
        Drawing(slug, label, tags, style)
        for slug, label, tags in emoji(modules)
        for style, icons in sets.items()
        if slug in icons["icons"]
    ]
    if not todo:
        raise click.ClickException(f"no emoji that fits in the packages of {modules}: delete the folder and try again")
    drawn = [draw(sets[drawing.style], drawing.slug) for drawing in tqdm(todo, desc="drawing", unit="picture")]
    harvested.save(work, np.stack(drawn), todo)
    return len(todo)
