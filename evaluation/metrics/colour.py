"""Saturation, contrast and clipping: what too much guidance does to colours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .base import Features, Images, Labels, SampleMetric, Values
from .registry import register

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, what image libraries call grey


@register("saturation")
@dataclass(frozen=True)
class Saturation(SampleMetric):
    """Mean over the pixels of the S of HSV, in [0, 1].

    ``S = (max - min) / max`` of a pixel's red, green and blue, and 0 for black. Sadat et al. 2024 (arXiv:2410.02416)
    show oversaturation by saturation and contrast; these are the usual readings of the two words, as their own
    computation was not at hand to compare with. A white, black or grey background has 0 and a coloured one its own:
    compare cells of the same prompts.
    """

    def measure(self, images: Images, labels: Labels, prompts: Sequence[str], features: Features | None) -> Values:
        """The saturation of each image."""
        high, low = images.max(-1).astype(np.float64), images.min(-1).astype(np.float64)
        saturation = np.divide(high - low, high, out=np.zeros_like(high), where=high > 0)
        means: Values = saturation.mean((1, 2))
        return means


@register("contrast")
@dataclass(frozen=True)
class Contrast(SampleMetric):
    """Standard deviation over the pixels of the luma, in [0, 0.5].

    Luma is ``0.299 R + 0.587 G + 0.114 B`` of values in [0, 1] (ITU-R BT.601); the deviation is that of the population:
    the root-mean-square contrast of the grey image.
    """

    def measure(self, images: Images, labels: Labels, prompts: Sequence[str], features: Features | None) -> Values:
        """The contrast of each image."""
        luma = images.astype(np.float64) @ (np.array(LUMA) / 255)
        deviations: Values = luma.std((1, 2))
        return deviations


@register("clipping")
@dataclass(frozen=True)
class Clipping(SampleMetric):
    """Share of the pixels with a channel at its end, 0 or 255, in [0, 1].

    Where guidance drives values beyond the range of an image, they end there. A pure white background counts too.
    """

    def measure(self, images: Images, labels: Labels, prompts: Sequence[str], features: Features | None) -> Values:
        """The share of each image."""
        ends = (images == 0) | (images == 255)
        shares: Values = ends.any(-1).mean((1, 2), dtype=np.float64)
        return shares
