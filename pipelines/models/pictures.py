"""Pictures that a user gives to a call: the initial image, its mask, and those for ControlNets and IP-Adapters."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from ...guidance.errors import InputError, reason
from ..latents import on_white
from .files import FORMATS, opened

MASK = "mask"
NAMES = {
    "image": "--image",
    MASK: "--mask",
    "control": "--control",
    "ip_image": "--ip-image",
}
"""The pictures of a call, each with the option that gives it."""


def read_image(path: Path) -> Image.Image:
    """A picture from a file that anybody may have written, upright and in RGB.

    Raises:
        InputError: no such file, no PNG, JPEG or WebP, or one of too many pixels.
    """
    return _read(path, on_white)


def read_objective(path: Path) -> Image.Image:
    """The picture of an objective from a file that anybody may have written, upright and with its transparency.

    Raises:
        InputError: no such file, no PNG, JPEG or WebP, or one of too many pixels.
    """
    return _read(path, lambda image: image.convert("RGBA" if image.has_transparency_data else "RGB"))


def _read(path: Path, converted: Callable[[Image.Image], Image.Image]) -> Image.Image:
    image = opened(path, FORMATS)
    try:
        return converted(ImageOps.exif_transpose(image))
    except Exception as error:  # what says how it was held may be damaged
        raise InputError(f"cannot turn {path} upright: {reason(error)}") from error


def sized(image: Image.Image, path: Path, wanted: tuple[int, int] | None, own: tuple[int, int] | None) -> Image.Image:
    """The image in the size to use it in.

    Args:
        image: the picture.
        path: where it came from.
        wanted: height and width, or None for the picture's own.
        own: those of the model; None where they are not known, and the picture stays as it is.

    Raises:
        InputError: the picture is of another size than the model makes, and none was said.
    """
    if wanted is None and own and (image.height, image.width) != own:
        size, here = "{}x{}".format(*own), f"{image.height}x{image.width}"
        raise InputError(
            f"{path} has {here} pixels and this model makes {size} (height x width): give --size {size} to have it "
            f"resized, or --size {here} to take it as it is"
        )
    height, width = wanted or own or (image.height, image.width)
    return image if image.size == (width, height) else image.resize((width, height), Image.Resampling.LANCZOS)


def check_strength(strength: float | None, image: object) -> None:
    """Refuse a strength without a picture that it is of.

    Raises:
        InputError: there is none.
    """
    if strength is not None and image is None:
        raise InputError("--strength says how far a picture is noised, and none was given; give --image FILE")


def digest_of(image: Image.Image) -> str:
    """Sixteen hex digits of the pixels of a picture."""
    return hashlib.sha256(image.tobytes()).hexdigest()[:16]


@dataclass(frozen=True, eq=False)
class Pictures:
    """The pictures that every image of a run is made from.

    Args:
        image: the initial image, upright and in RGB; None to begin from noise.
        mask: the mask in grey, of the size of `image`: white is painted anew, black is kept.
        control: the pictures for ControlNets, one for each.
        ip_image: the picture for an IP-Adapter.
        paths: where each came from, by the names of `digests`.
    """

    image: Image.Image | None = None
    mask: Image.Image | None = None
    control: tuple[Image.Image, ...] = ()
    ip_image: Image.Image | None = None
    paths: Mapping[str, Path] = field(default_factory=dict)

    @classmethod
    def read(
        cls,
        image: Path | None = None,
        mask: Path | None = None,
        control: Sequence[Path] = (),
        ip_image: Path | None = None,
    ) -> Pictures:
        """The pictures in files that anybody may have written.

        Raises:
            InputError: a file is no picture, or a mask is of another size than its image or without one.
        """
        files = {"image": image, MASK: mask, **_numbered(control), "ip_image": ip_image}
        paths = {name: path for name, path in files.items() if path is not None}
        found = {name: read_image(path) for name, path in paths.items()}
        if mask is not None:
            if image is None:
                raise InputError("--mask says where in a picture to paint, and no picture was given; give --image FILE")
            if found[MASK].size != found["image"].size:
                sizes = [f"{one.height}x{one.width}" for one in (found[MASK], found["image"])]
                raise InputError(
                    f"--mask {mask} has {sizes[0]} pixels and --image {image} {sizes[1]} (height x width); a mask is "
                    "of the size of its picture"
                )
            found[MASK] = found[MASK].convert("L")
        return cls(
            found.get("image"),
            found.get(MASK),
            tuple(found[name] for name in _numbered(control)),
            found.get("ip_image"),
            paths,
        )

    @property
    def by_name(self) -> dict[str, Image.Image]:
        """The pictures that are there; of several controls the second is ``"control2"``."""
        named = {"image": self.image, MASK: self.mask, **_numbered(self.control), "ip_image": self.ip_image}
        return {name: picture for name, picture in named.items() if picture is not None}

    @property
    def digests(self) -> dict[str, str]:
        """A digest of the pixels of each picture, as it was given."""
        return {name: digest_of(picture) for name, picture in self.by_name.items()}

    @property
    def task(self) -> str:
        """What an image begins from: ``"text"``, ``"image"``, or ``"inpaint"`` for a picture with a mask."""
        return "inpaint" if self.mask is not None else "image" if self.image is not None else "text"

    def at(self, size: tuple[int, int] | None, own: tuple[int, int] | None) -> Pictures:
        """The pictures in the size of what is made; the one that an IP-Adapter is shown stays as it is.

        Args:
            size: height and width; None for the model's own, which the pictures then must have.
            own: the model's own height and width, where these are known.

        Raises:
            InputError: no size was said, and a picture has another than the model's own.
        """
        named = {
            name: sized(picture, self.paths.get(name, Path(name)), size, own)
            for name, picture in self.by_name.items()
            if name not in (MASK, "ip_image")
        }
        mask = self.mask
        if mask is not None and mask.size != named["image"].size:
            mask = mask.resize(named["image"].size, Image.Resampling.NEAREST)
        control = tuple(named[name] for name in _numbered(self.control))
        return Pictures(named.get("image"), mask, control, self.ip_image, self.paths)

    def arguments(self, takes: Collection[str], count: int) -> dict[str, Any]:
        """The arguments of a pipeline for these pictures.

        Args:
            takes: names of the pipeline's arguments.
            count: images of the call: each begins from a picture of its own.

        Raises:
            InputError: the pipeline takes no such picture.
        """
        found: dict[str, Any] = {}
        follow = "control_image" if "control_image" in takes else "image"
        if self.image is not None:
            found["image"] = [self.image] * count
        if self.mask is not None:
            found["mask_image"] = [self.mask] * count
        if self.control:
            found[follow] = list(self.control) if len(self.control) > 1 else self.control[0]
        if self.ip_image is not None:
            found["ip_adapter_image"] = self.ip_image
        if lacking := set(found) - set(takes):
            raise InputError(f"this model's pipeline takes no {min(lacking)}; leave the picture out")
        return found


def _numbered(controls: Sequence[Any]) -> dict[str, Any]:
    """Pictures to follow by name: the first is ``"control"``, the second ``"control2"``."""
    return {f"control{place if place > 1 else ''}": one for place, one in enumerate(controls, 1)}
