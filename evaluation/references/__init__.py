"""Reference images: what sets of generated images are compared with.

The text that names one, in a metric's parameter ``reference``:

=====================  ==============================================================================================
``emoji``              the 1,716 pictures that the bundled model learnt from (429 concepts, four styles), each on one
                       of the twelve background colours, 143 on each: as its prompts are drawn
``emoji-COLOUR``       the same, all on one of the colours, such as ``emoji-white``
a folder               the user's own pictures, PNG, WebP or JPEG, searched with its subfolders
=====================  ==============================================================================================

Features of a reference are computed once and kept in ``~/.cache/guidestack/references``, or in the folder that the
environment variable ``GUIDESTACK_CACHE`` names.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ...guidance.errors import InputError, nearest
from ...guidance.files import replacing
from ...pipelines.models.files import FORMATS, SUFFIXES, opened
from .. import extractors
from .. import paths as places
from ..emoji.pictures import Pixels, on_background
from ..emoji.vocabulary import BACKGROUNDS
from ..values import file

HERE = Path(__file__).parent
EMOJI = "emoji"
TILE, COLUMNS = 64, 44
BATCH = 64
MAX_PICTURES = 1_000_000  # pictures of a folder


@dataclass(frozen=True, eq=False)
class Drawings:
    """The pictures that the bundled model learnt from.

    Args:
        rgba: shape ``(1716, 64, 64, 4)``.
        slugs: concept of each.
        styles: style of each.
    """

    rgba: Pixels
    slugs: NDArray[np.str_]
    styles: NDArray[np.str_]


@functools.cache
def drawings() -> Drawings:
    """The pictures that ship, to the bit as they were harvested."""
    told = json.loads((HERE / "emoji.json").read_text())
    with Image.open(HERE / "emoji.webp") as sheet:
        pixels = np.asarray(sheet.convert("RGBA"))
    rows = pixels.shape[0] // TILE
    tiles = pixels.reshape(rows, TILE, COLUMNS, TILE, 4).swapaxes(1, 2).reshape(-1, TILE, TILE, 4)
    slugs = [slug for slug, styles in told.items() for _ in styles]
    styles = [style for styles in told.values() for style in styles]
    return Drawings(tiles[: len(slugs)], np.array(slugs), np.array(styles))


def backgrounds(count: int) -> list[str]:
    """A background for each of `count` pictures: every colour equally often, in an order that is always the same."""
    names = list(BACKGROUNDS)
    dealt = [names[index % len(names)] for index in range(count)]
    random.Random(EMOJI).shuffle(dealt)
    return dealt


@dataclass(frozen=True)
class Reference:
    """A set of reference images.

    Args:
        name: the full name, with the number of pictures: ``emoji-1716-all``.
        source: the colour, or None for all, of the bundled pictures; or the user's files.
    """

    name: str
    source: str | tuple[Path, ...] | None

    def images(self, size: int = BATCH) -> Iterator[NDArray[np.uint8]]:
        """The pictures, shape ``(B, H, W, 3)``; a batch has one size.

        Raises:
            InputError: a file is no picture.
        """
        if isinstance(self.source, tuple):
            for path in self.source:
                yield np.asarray(opened(path, FORMATS).convert("RGB"))[None]
            return
        rgba = drawings().rgba
        colours = [self.source] * len(rgba) if self.source else backgrounds(len(rgba))
        shown = np.stack([on_background(one, BACKGROUNDS[name]) for one, name in zip(rgba, colours, strict=True)])
        whole = (shown * 255).round().astype(np.uint8)
        yield from (whole[start : start + size] for start in range(0, len(whole), size))


def find(text: str) -> Reference:
    """The reference that `text` means.

    Raises:
        InputError: there is none.
    """
    colour = text.partition("-")[2]
    if _ships(text):
        if colour and colour not in (*BACKGROUNDS, "all"):
            raise InputError(
                f"unknown reference {text!r}{nearest(text, [EMOJI, *(f'{EMOJI}-{c}' for c in BACKGROUNDS)])}"
            )
        count = sum(map(len, json.loads((HERE / "emoji.json").read_text()).values()))
        return Reference(f"{EMOJI}-{count}-{colour or 'all'}", None if colour in ("", "all") else colour)
    folder = Path(file(text, "the reference")).expanduser() if text else Path()
    if not text or not folder.is_dir():
        raise InputError(f"the reference {text!r} is neither {EMOJI!r} nor a folder of pictures")
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not 0 < len(found) <= MAX_PICTURES:
        raise InputError(
            f"the reference {text!r} has {len(found)} pictures ({', '.join(SUFFIXES)}); 1 to {MAX_PICTURES} are read"
        )
    return Reference(f"{folder.resolve().name}-{len(found)}-{_digest(folder, found)}", tuple(found))


def located(text: str, folder: Path | None = None) -> str:
    """The text of a reference with the absolute path of the user's pictures."""
    return text if _ships(text) else places.located(text, folder)


def _ships(text: str) -> bool:
    return text.partition("-")[0] == EMOJI and "/" not in text


def _digest(folder: Path, files: list[Path]) -> str:
    """A name for the files of a folder as they are: by their names, sizes and times of change."""
    told = [(str(path.relative_to(folder)), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.blake2b(json.dumps(told).encode(), digest_size=4).hexdigest()


def full_name(text: str) -> str:
    """The name of a reference, as full names of metrics have it.

    Raises:
        InputError: there is none.
    """
    return find(text).name


def features(text: str, extractor: str) -> NDArray[np.float32]:
    """The features of a reference, shape ``(N, D)``; kept, so that the network runs once.

    Raises:
        InputError: the reference or the extractor cannot be used.
    """
    return _features(find(text), extractor, extractors.full_name(extractor))


@functools.lru_cache(maxsize=8)
def _features(reference: Reference, extractor: str, name: str) -> NDArray[np.float32]:
    path = cache() / name / f"{reference.name}.safetensors"
    key = {"of": _made_of(reference)}
    try:
        if (found := _kept(path, key)) is not None:
            return found
    except (OSError, SafetensorError, KeyError):
        pass  # not there, or damaged: made anew
    net = extractors.load(extractor)
    found = np.concatenate([net(batch) for batch in reference.images()])
    try:
        with replacing(path) as beside:
            save_file({"features": found}, beside, key)
    except OSError:
        pass  # nowhere to keep them: the next process computes them again
    return found


def _kept(path: Path, key: dict[str, str]) -> NDArray[np.float32] | None:
    with safe_open(path, "np") as file:
        return file.get_tensor("features") if file.metadata() == key else None


def _made_of(reference: Reference) -> str:
    """What the features depend on beside the names: the pictures themselves."""
    if isinstance(reference.source, tuple):
        return reference.name
    drawn = repr((BACKGROUNDS, reference.source or backgrounds(len(BACKGROUNDS)))).encode()
    return hashlib.blake2b((HERE / "emoji.webp").read_bytes() + drawn, digest_size=8).hexdigest()


def cache() -> Path:
    """The folder in which features of references are kept; deleting it costs their computation."""
    return Path(os.environ.get("GUIDESTACK_CACHE", "~/.cache/guidestack")).expanduser() / "references"
