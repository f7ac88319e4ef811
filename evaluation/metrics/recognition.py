"""Whether an image of the bundled model shows what its prompt asks for: the background, the concept, the style.

An image is compared with the pictures that the model learnt from: at 16x16 pixels, with those on the background that
was asked for, or by features, with those on white. This is how the model's card measures it, with the same code
(`guidestack.scripts.dev.emoji`). Prompts need labels; those of ``prompts: {bundled: ...}`` have them.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ...guidance import fields
from ...guidance.errors import InputError, nearest
from .. import extractors, references
from ..emoji.pictures import Place, border, nearest_colour, on_background, order, place, shrink, units
from ..emoji.vocabulary import BACKGROUNDS
from .base import Features, Images, Labels, SampleMetric, Values
from .registry import register

PIXELS, FEATURES = "pixels", "features"
WHITE = "emoji-white"
SIDE = 64


@functools.cache
def _thumbnails(background: str) -> NDArray[np.float32]:
    return shrink(on_background(references.drawings().rgba, BACKGROUNDS[background]))


@functools.lru_cache(maxsize=2)
def _described(extractor: str, name: str) -> NDArray[np.float32]:
    return units(references.features(WHITE, extractor))


def _asked(metric: SampleMetric, labels: Labels, name: str, known: Sequence[str]) -> list[str | None]:
    """What each image was to show.

    Raises:
        InputError: something that is not known here.
    """
    asked = list(labels[name])
    for label in dict.fromkeys(asked):
        if label is not None and label not in known:
            raise InputError(f"{metric}: no {name} {label!r} among the bundled pictures{nearest(label, known)}")
    return asked


def _shown(metric: SampleMetric, images: Images) -> NDArray[np.float32]:
    if images.shape[1:3] != (SIDE, SIDE):
        raise InputError(f"{metric} looks at images of {SIDE}x{SIDE} pixels; got {images.shape[1]}x{images.shape[2]}")
    shown: NDArray[np.float32] = images.astype(np.float32) / np.float32(255)
    return shown


@dataclass(frozen=True)
class _Recognized(SampleMetric):
    better: ClassVar[str] = "up"
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    share: ClassVar[bool] = True

    by: str = PIXELS

    def __post_init__(self) -> None:
        fields.choice(self, "by", (PIXELS, FEATURES))

    @property
    def extractor(self) -> str | None:
        """The default extractor if images are compared by features; None for pixels."""
        return extractors.DEFAULT if self.by == FEATURES else None

    def described(self) -> list[str]:
        """The parts of the full name: how images are compared, with which references, and the parameters."""
        how = "16x16 pixels" if self.by == PIXELS else extractors.full_name(extractors.DEFAULT)
        on = "emoji-1716-as-asked" if self.by == PIXELS else references.full_name(WHITE)
        return [how, f"reference={on}", *self.more()]

    def more(self) -> list[str]:
        """Further parts of the full name."""
        return []

    def places(self, images: Images, labels: Labels, features: Features | None) -> list[Place | None]:
        """Where each image's concept comes among the references; None where its labels are not known.

        Raises:
            InputError: images of another size, labels that are not known here, or no features.
        """
        drawn = references.drawings()
        concepts = _asked(self, labels, "concept", drawn.slugs.tolist())
        found: list[Place | None] = [None] * len(images)
        if self.by == FEATURES:
            if features is None:
                raise InputError(f"{self} needs features of {self.extractor}")
            white = _described(extractors.DEFAULT, references.full_name(WHITE))
            compared = [(list(range(len(images))), units(features), white)]
        else:
            asked = _asked(self, labels, "background", list(BACKGROUNDS))
            thumbnails = shrink(_shown(self, images))
            groups = {name: [row for row, one in enumerate(asked) if one == name] for name in BACKGROUNDS}
            compared = [(rows, thumbnails[rows], _thumbnails(name)) for name, rows in groups.items() if rows]
        for rows, made, pictures in compared:
            for row, ranked in zip(rows, order(made, pictures), strict=True):
                if (slug := concepts[row]) is not None:
                    found[row] = place(ranked, drawn.slugs, drawn.styles, slug)
        return found


@register("concept")
@dataclass(frozen=True)
class Concept(_Recognized):
    """Share of the images of which one of the `top` nearest pictures shows the concept that was asked for.

    Args:
        by: ``"pixels"``, or ``"features"`` of the default extractor.
        top: nearest pictures that are looked at.
    """

    labels: ClassVar[tuple[str, ...]] = ("concept", "background")

    top: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        fields.whole(self, "top", 1)

    def more(self) -> list[str]:
        """The number of nearest pictures, as a part of the full name."""
        return [f"top={self.top}"]

    def measure(self, images: Images, labels: Labels, prompts: Sequence[str], features: Features | None) -> Values:
        """Measure each image: 1 or 0, NaN where its label is not known."""
        found = self.places(images, labels, features)
        return np.array([np.nan if one is None else float(one.picture < self.top) for one in found])


@register("style")
@dataclass(frozen=True)
class Style(_Recognized):
    """Share of the images to which, of the pictures of the concept, the one in the style that was asked for is nearest.

    Args:
        by: ``"pixels"``, or ``"features"`` of the default extractor.
    """

    labels: ClassVar[tuple[str, ...]] = ("concept", "style", "background")

    def measure(self, images: Images, labels: Labels, prompts: Sequence[str], features: Features | None) -> Values:
        """Measure each image: 1 or 0, NaN where its label is not known."""
        found = self.places(images, labels, features)
        asked = _asked(self, labels, "style", sorted(set(references.drawings().styles.tolist())))
        pairs = zip(found, asked, strict=True)
        return np.array([np.nan if one is None or name is None else float(one.style == name) for one, name in pairs])


@register("background")
@dataclass(frozen=True)
class Background(SampleMetric):
    """Share of the images whose border is nearest to the colour that was asked for, of the twelve.

    The median over a border of three pixels; Euclidean in sRGB.
    """

    better: ClassVar[str] = "up"
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    share: ClassVar[bool] = True
    labels: ClassVar[tuple[str, ...]] = ("background",)

    def measure(self, images: Images, labels: Labels, prompts: Sequence[str], features: Features | None) -> Values:
        """Measure each image: 1 or 0, NaN where its label is not known."""
        asked = _asked(self, labels, "background", list(BACKGROUNDS))
        pairs = zip(nearest_colour(border(_shown(self, images))), asked, strict=True)
        return np.array([np.nan if name is None else float(found == name) for found, name in pairs])
