"""The objectives that come with guidestack, a file each."""

from .classes import Classified
from .color import Blue, Color, Green, Red
from .counts import Blobs, Counted
from .efficientnet import ImageNet, Similar
from .emoji import Emoji
from .jpeg import JPEG
from .known import Known
from .linear import Blur, Linear, Projection, SuperResolution
from .palette import Palette

__all__ = [
    "JPEG",
    "Blobs",
    "Blue",
    "Blur",
    "Classified",
    "Color",
    "Counted",
    "Emoji",
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
