"""The objectives that come with guidestack, a file each."""

from .color import Blue, Color, Green, Red

__all__ = ["Blue", "Color", "Green", "Red"]
