"""The words of a prompt: concepts, styles and backgrounds, and the captions made of them."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

STYLES = {
    "noto": "@iconify-json/noto",
    "twemoji": "@iconify-json/twemoji",
    "flat": "@iconify-json/fluent-emoji-flat",
    "gradient": "@iconify-json/fluent-emoji",
}
"""Style word of the caption: npm package with the drawings."""

BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (255, 255, 255),
    "black": (20, 20, 20),
    "red": (220, 48, 48),
    "orange": (245, 148, 36),
    "yellow": (250, 228, 66),
    "green": (58, 168, 78),
    "blue": (52, 115, 218),
    "purple": (138, 80, 188),
    "pink": (250, 160, 182),
    "gray": (152, 152, 152),
    "brown": (132, 84, 50),
    "cyan": (90, 208, 222),
}
"""Colour word of the caption: sRGB, 0..255."""


@cache
def concepts() -> tuple[str, ...]:
    """The slugs of the 429 concepts that the denoiser learns."""
    return tuple((Path(__file__).parent / "concepts.txt").read_text().split())


def caption(label: str, style: str | None = None, background: str | None = None) -> str:
    """The prompt for a picture: ``cat face, noto style, blue background``."""
    parts = (label, style and f"{style} style", background and f"{background} background")
    return ", ".join(part for part in parts if part)


HYPHENS = (
    "upside-down face",
    "money-mouth face",
    "zipper-mouth face",
    "see-no-evil monkey",
    "hear-no-evil monkey",
    "speak-no-evil monkey",
    "two-hump camel",
    "jack-o-lantern",
    "t-shirt",
    "e-mail",
)
"""The labels of which a hyphen is a part; in all others the slug has hyphens for spaces."""


@cache
def labels() -> dict[str, str]:
    """The label of every concept's slug, without the pictures at hand."""
    hyphenated = {label.replace(" ", "-"): label for label in HYPHENS}
    return {slug: hyphenated.get(slug, slug.replace("-", " ")) for slug in concepts()}


@dataclass(frozen=True)
class Request:
    """What a prompt for the bundled model asks for."""

    slug: str
    label: str
    style: str
    background: str

    @property
    def prompt(self) -> str:
        """The prompt's text."""
        return caption(self.label, self.style, self.background)


def drawn_requests(labels: Mapping[str, str], count: int, seed: int, backgrounds: Sequence[str] = ()) -> list[Request]:
    """Requests drawn evenly and independently over concepts, styles and backgrounds; a prefix of any longer list.

    Args:
        labels: what may be asked for: the label of each slug.
        count: of the requests.
        seed: the same one draws the same requests.
        backgrounds: colour words to choose from; all twelve if empty.
    """
    random_, slugs = random.Random(seed), sorted(labels)
    drawn = []
    for _ in range(count):
        slug, style = random_.choice(slugs), random_.choice(list(STYLES))
        drawn.append(Request(slug, labels[slug], style, random_.choice(backgrounds or list(BACKGROUNDS))))
    return drawn
