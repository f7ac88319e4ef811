"""Whether an image is the baseline's image of the same prompt and seed: PSNR, SSIM, a distance of feature maps."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...guidance import fields
from ...guidance.errors import InputError
from .. import extractors
from .base import Images, PairMetric, Values
from .registry import register

WINDOW, SIGMA = 11, 1.5


@register("psnr")
@dataclass(frozen=True)
class PSNR(PairMetric):
    """Peak signal-to-noise ratio to the baseline's image, ``10 log10(255^2 / MSE)``, in decibels, mean over images.

    Args:
        cap: what equal images count as, and no image more; their ratio has no bound.
    """

    better: ClassVar[str] = "up"

    cap: float = 100.0

    def __post_init__(self) -> None:
        fields.number(self, "cap", 1.0)

    @property
    def best(self) -> float:
        """The number of equal images: `cap`."""
        return self.cap

    def compare(self, images: Images, others: Images) -> Values:
        """The ratio of each image."""
        error = np.square(images.astype(np.float64) - others).mean((1, 2, 3))
        with np.errstate(divide="ignore"):
            ratios: Values = np.minimum(10 * np.log10(255.0**2 / error), self.cap)
        return ratios


@register("ssim")
@dataclass(frozen=True)
class SSIM(PairMetric):
    """Structural similarity to the baseline's image, in [-1, 1]; 1 for equal images.

    Wang et al. 2004: Gaussian window of 11x11 pixels with sigma 1.5, K1 = 0.01, K2 = 0.03, at places where the whole
    window is inside the image; mean over places and over red, green and blue.
    """

    better: ClassVar[str] = "up"
    range: ClassVar[tuple[float, float]] = (-1.0, 1.0)

    def described(self) -> list[str]:
        """The parts of the full name: window and channels."""
        return [f"window={WINDOW}", f"sigma={SIGMA}", "rgb"]

    def compare(self, images: Images, others: Images) -> Values:
        """The similarity of each image.

        Raises:
            InputError: the images are smaller than the window.
        """
        if min(images.shape[1:3]) < WINDOW:
            raise InputError(
                f"ssim needs images of {WINDOW}x{WINDOW} pixels at least; got {images.shape[1]}x{images.shape[2]}"
            )
        one, other = (torch.from_numpy(pixels.astype(np.float64)).permute(0, 3, 1, 2) for pixels in (images, others))
        mean1, mean2 = _blurred(one), _blurred(other)
        var1, var2 = _blurred(one * one) - mean1**2, _blurred(other * other) - mean2**2
        both = _blurred(one * other) - mean1 * mean2
        c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
        likeness = (2 * mean1 * mean2 + c1) * (2 * both + c2) / ((mean1**2 + mean2**2 + c1) * (var1 + var2 + c2))
        found: Values = likeness.mean((1, 2, 3)).numpy()
        return found


@functools.cache
def _weights() -> Tensor:
    places = torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2
    weights = torch.exp(-(places**2) / (2 * SIGMA**2))
    return weights / weights.sum()


def _blurred(images: Tensor) -> Tensor:
    """Images ``(N, C, H, W)`` under the window, without the border where it would reach out."""
    weights = _weights()
    count, channels, height, width = images.shape
    planes = images.reshape(count * channels, 1, height, width)
    planes = torch.nn.functional.conv2d(planes, weights.view(1, 1, -1, 1))
    planes = torch.nn.functional.conv2d(planes, weights.view(1, 1, 1, -1))
    return planes.reshape(count, channels, *planes.shape[2:])


def map_distance(one: list[NDArray[np.float32]], other: list[NDArray[np.float32]]) -> Values:
    """Distance of feature maps, for each layer ``(N, C, h, w)``: channels at a place made a unit vector, the squared
    difference summed over channels and averaged over places and layers; shape ``(N,)``, in [0, 4].
    """
    found = []
    for here, there in zip(one, other, strict=True):
        units = [_units(maps.astype(np.float64)) for maps in (here, there)]
        found.append(np.square(units[0] - units[1]).sum(1).mean((1, 2)))
    mean: Values = np.mean(found, axis=0)
    return mean


def _units(maps: NDArray[np.float64]) -> NDArray[np.float64]:
    units: NDArray[np.float64] = maps / np.linalg.norm(maps, axis=1, keepdims=True).clip(1e-10)
    return units


@register("feature_distance")
@dataclass(frozen=True)
class FeatureDistance(PairMetric):
    """Distance of the feature maps of five layers to those of the baseline's image; 0 for equal images.

    As LPIPS (Zhang et al. 2018, arXiv:1801.03924, equation 1) with equal weights and another network: no LPIPS number
    is comparable with it.

    Args:
        extractor: with feature maps.
    """

    better: ClassVar[str] = "down"
    range: ClassVar[tuple[float, float]] = (0.0, 4.0)

    extractor: str = extractors.DEFAULT

    def compare(self, images: Images, others: Images) -> Values:
        """The distance of each image."""
        net = extractors.load(self.extractor)
        return map_distance(net.maps(images), net.maps(others))
