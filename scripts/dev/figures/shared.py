"""Numbers for how a picture looks, in the terms in which the field speaks of too much guidance."""

from __future__ import annotations

from PIL import Image, ImageStat


def saturation(image: Image.Image) -> float:
    """Mean saturation of the pixels in HSV, in [0, 1]."""
    return float(ImageStat.Stat(image.convert("RGB").convert("HSV")).mean[1]) / 255


def contrast(image: Image.Image) -> float:
    """RMS contrast: standard deviation of the brightness over the pixels, in [0, 0.5]; brightness is PIL's ``L``."""
    return float(ImageStat.Stat(image.convert("RGB").convert("L")).stddev[0]) / 255
