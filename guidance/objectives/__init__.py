"""The objectives that come with guidestack, a file each."""

from ..objective import Determining
from .classes import Classified
from .color import Blue, Color, Green, Red
from .counts import Blobs, Counted
from .efficientnet import ImageNet, Similar
from .emoji import Emoji
from .jpeg import JPEG
from .known import Border, Known
from .linear import Blur, Gray, Linear, Projection, SuperResolution
from .palette import Palette

__all__ = [
    "JPEG",
    "Blobs",
    "Blue",
    "Blur",
    "Border",
    "Classified",
    "Color",
    "Counted",
    "Determining",
    "Emoji",
    "Gray",
    "Green",
    "ImageNet",
    "Known",
    "Linear",
    "Palette",
    "Projection",
    "Red",
    "Similar",
    "SuperResolution",
]
