"""Image files, written atomically and with the recipe that makes each again; and labelled grids."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont, PngImagePlugin, UnidentifiedImageError

from ...guidance.errors import InputError, reason
from ...guidance.files import replacing
from ...guidance.reading import is_folder, json_of, read_bytes

KEY = "guidestack"  # of the text chunk
FORMATS = ("PNG", "JPEG", "WEBP")
MAX_BYTES = 2**28  # bytes of a picture's file
LARGEST_SIDE = 8192  # pixels, of what is made and of what is read
MOST_PIXELS = LARGEST_SIDE**2
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def size_of(text: str) -> tuple[int, int]:
    """Height and width in pixels, from ``"64x64"``.

    Raises:
        ValueError: another form, or sides out of bounds; the message is what the size must be.
    """
    match = re.fullmatch(r"([0-9]{1,9})x([0-9]{1,9})", text.lower())
    if match is None:
        raise ValueError("must be HEIGHTxWIDTH in pixels, such as 64x64")
    height, width = int(match[1]), int(match[2])
    if not (0 < height <= LARGEST_SIDE and 0 < width <= LARGEST_SIDE):
        raise ValueError(f"must have sides of 1 to {LARGEST_SIDE} pixels")
    return height, width


def write(image: Image.Image, path: Path, recipe: dict[str, Any] | None = None) -> None:
    """Save as PNG, whole or not at all.

    Raises:
        InputError: the file cannot be written: the folder, the rights, a full disk.
    """
    try:
        with replacing(path, make_folder=False) as beside:
            image.save(beside, format="PNG", pnginfo=_png_info(recipe))
    except OSError as error:
        raise InputError(f"cannot write {path}: {reason(error)}; choose another --out or make room") from error


def contents(image: Image.Image, kind: str, recipe: dict[str, Any] | None = None) -> bytes:
    """An image as the contents of a file: ``"png"`` with its recipe, or ``"webp"`` without loss."""
    sink = io.BytesIO()
    if kind == "png":
        image.save(sink, format="PNG", pnginfo=_png_info(recipe))
    else:
        image.save(sink, format="WEBP", lossless=True)
    return sink.getvalue()


def _png_info(recipe: dict[str, Any] | None) -> PngImagePlugin.PngInfo:
    """Return the PNG metadata that says how an image was made."""
    text = PngImagePlugin.PngInfo()
    if recipe is not None:
        text.add_itxt(KEY, json.dumps(recipe, ensure_ascii=False))
    return text


def make_folder(folder: Path) -> None:
    """Make a folder and those around it.

    `write` makes none: one that is removed while pictures are made is missed at the next of them.

    Raises:
        InputError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot write to {folder}: {reason(error)}; choose another --out") from error


def check_writable(folder: Path, name: str = "") -> None:
    """Refuse a folder that cannot be written to, before work is put into what is to go there. Nothing is left.

    Args:
        folder: the folder.
        name: of a file that is to be written there.

    Raises:
        InputError: it cannot, or no file can have that name.
    """
    new = []
    try:
        new = [one for one in (folder, *folder.parents) if not one.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        with contextlib.suppress(FileNotFoundError):
            os.lstat(folder / f".{name}.part")
    except (OSError, ValueError) as error:
        raise InputError(f"cannot write to {folder / name}: {reason(error)}; choose another --out") from error
    finally:
        for one in new:
            with contextlib.suppress(OSError):
                one.rmdir()


def check_out(folder: Path, instead: str = "") -> None:
    """Refuse a folder of pictures that cannot be written to, and one that is named like a picture.

    Args:
        folder: what a user gave as ``--out``.
        instead: further advice to a user who gave the name of a picture.

    Raises:
        InputError: also for the name of a picture.
    """
    if folder.suffix.lower() in SUFFIXES and not is_folder(folder):
        raise InputError(
            f"--out is a folder, in which each picture gets a name of its own; got {str(folder)!r}{instead}"
        )
    check_writable(folder)


def opened(path: str | Path, formats: tuple[str, ...] = ("PNG",)) -> Image.Image:
    """A picture from a file that anybody may have written, decoded.

    Args:
        path: of the file.
        formats: that it may have, whatever its name; others are not tried.

    Raises:
        InputError: it cannot be read, or as of `decoded`.
    """
    return decoded(read_bytes(path, "image", MAX_BYTES), repr(str(path)), formats)


def decoded(data: bytes, name: str, formats: tuple[str, ...] = ("PNG",)) -> Image.Image:
    """A picture from the contents of a file that anybody may have written: the one place that reads them.

    Args:
        data: the contents.
        name: of the file, quoted, for messages.
        formats: that it may have, whatever its name; others are not tried.

    Raises:
        InputError: it is of another format, is damaged, or is larger than 8192 x 8192 pixels, which its first bytes
            tell.
    """
    kinds = " or ".join(formats)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the bound below is lower
            image = Image.open(io.BytesIO(data), formats=formats)
        pixels = image.width * image.height
        if pixels <= MOST_PIXELS:
            image.load()
    except Image.DecompressionBombError:
        pixels = MOST_PIXELS + 1
    except UnidentifiedImageError as error:  # whose message names the buffer
        raise InputError(f"cannot read the image {name} as {kinds}: it is none, or is damaged") from error
    except Exception as error:  # the readers of formats raise what a damaged file makes them run into
        raise InputError(f"cannot read the image {name} as {kinds}: {reason(error)}") from error
    if pixels > MOST_PIXELS:
        raise InputError(
            f"the image {name} has more pixels than are read, {LARGEST_SIDE}x{LARGEST_SIDE}; make it smaller"
        )
    return image


def read_recipe(path: Path) -> dict[str, Any]:
    """Read the recipe that `write` stored in an image.

    Raises:
        InputError: no such file, no picture, or one that guidestack did not make.
    """
    try:
        recipe = json_of(getattr(opened(path, FORMATS), "text", {}).get(KEY, ""))
    except ValueError:
        recipe = None
    if not isinstance(recipe, dict):
        raise InputError(f"{path} does not say how it was made; images of guidestack do, but no grid of them")
    return recipe


LINE = 16  # pixels from one line of text to the next
WIDE = 128  # pixels of an image of a grid, at least


def grid(
    images: Sequence[Sequence[Image.Image | None]],
    rows: Sequence[str],
    columns: Sequence[str],
    captions: Sequence[Sequence[str]] | None = None,
) -> Image.Image:
    """Draw a grid of images with a label for each row and column.

    Args:
        images: rows of images; all are enlarged by one whole factor, to `WIDE` at least; None leaves a place empty.
        rows: a label for each row; a long one is wrapped.
        columns: a label for each column.
        captions: a line under each image, in the order of `images`.
    """
    there = [image for row in images for image in row if image is not None]
    factor = max(1, -(-WIDE // min(image.width for image in there)))
    width, height = (factor * max(getattr(image, side) for image in there) for side in ("width", "height"))
    gap = 6
    font = ImageFont.load_default(13)
    measure = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    heads = [_wrapped(label, width, font, measure) for label in columns]
    sides = [_wrapped(label, 2 * width, font, measure) for label in rows]
    left = (
        max((int(measure.textlength(line, font)) for side in sides for line in side.split("\n")), default=0) + 2 * gap
    )
    top = max((head.count("\n") + 1 for head in heads), default=0) * LINE + gap
    pitch = height + gap + (LINE if captions else 0)
    sheet = Image.new("RGB", (left + len(columns) * (width + gap), top + len(rows) * pitch), "white")
    draw = ImageDraw.Draw(sheet)
    for column, head in enumerate(heads):
        draw.multiline_text((left + column * (width + gap), gap // 2), head, "black", font, spacing=2)
    for row, label in enumerate(sides):
        y = top + row * pitch
        draw.multiline_text(
            (gap, y + height // 2 - LINE // 2 * (label.count("\n") + 1)), label, "black", font, spacing=2
        )
        for column, image in enumerate(images[row]):
            x = left + column * (width + gap)
            if image is not None:
                larger = (image.width * factor, image.height * factor)
                sheet.paste(image.convert("RGB").resize(larger, Image.Resampling.NEAREST), (x, y))
            if captions:
                draw.text((x, y + height), captions[row][column], "black", font)
    return sheet


def _wrapped(text: str, width: int, font: Any, measure: ImageDraw.ImageDraw) -> str:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if measure.textlength(longer, font) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return "\n".join(lines)
