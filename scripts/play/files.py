"""Files that are given to the page: a picture to begin from, its mask, LoRAs, and the pictures of objectives.

Anybody may have made them. Each lies in a folder of its own, under a name of plain words, and is read by what reads it
for ``guidestack generate``.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from ...guidance.errors import GuidestackError, InputError
from ...guidance.notation.objectives import kinds, objectives
from ...guidance.objective import OBJECTIVE, name_of
from ...guidance.rule import Stack, objectives_of
from ...pipelines.models.parts import Part, Parts
from ...pipelines.models.pictures import MASK, Pictures, read_objective

PICTURES = ("image", MASK)


@dataclass(frozen=True, eq=False)
class Given:
    """The files that images are made from.

    Args:
        pictures: to begin from, and where to paint.
        parts: the LoRAs.
        objectives: the pictures of objectives, by the name of the objective.
        paths: where each picture lies, by its name: that of an objective is `OBJECTIVE` and the objective's.
    """

    pictures: Pictures = field(default_factory=Pictures)
    parts: Parts = field(default_factory=Parts)
    objectives: Mapping[str, Image.Image] = field(default_factory=dict)
    paths: Mapping[str, Path] = field(default_factory=dict)

    def options(self, asked: Collection[str]) -> list[str]:
        """The words of the command line that give the files, by the names that they have for their user.

        Args:
            asked: the names of the objectives that the stack steers by.
        """
        words = [word for name in PICTURES if name in self.paths for word in (f"--{name}", self.paths[name].name)]
        for part in self.parts.lora:
            words += ["--lora", f"{Path(part.name).name}={part.amount:g}"]
        for name in sorted(self.objectives.keys() & asked):
            words += ["--objective", f"{name}={self.paths[OBJECTIVE + name].name}"]
        return words


def place_of(folder: Path, name: str) -> Path:
    """A new place for a file that its user calls `name`: in a folder of its own, named by the plain words of that.

    It is short, so that messages, which quote the whole path cut to what fits, have the name in them.
    """
    words = re.sub(r"[^\w.-]+", "-", Path(name).name)[-32:].lstrip(".-")
    place = folder / uuid.uuid4().hex[:8]
    place.mkdir()
    return place / (words or "file")


def needed(stacks: Sequence[Stack]) -> dict[str, str]:
    """The pictures that the objectives of stacks take: by the name of each, the text of its objective."""
    texts = [text for stack in stacks for text in objectives_of(stack)]
    known = {name for name, kind in kinds().items() if kind.takes}
    return {OBJECTIVE + name_of(text): text for text in texts if name_of(text) in known}


def read(paths: Mapping[str, Path], loras: Sequence[tuple[Path, str]]) -> tuple[Given, dict[str, str]]:
    """What files hold, and what is wrong with them: by the name of each, the command line's own line.

    Args:
        paths: of the pictures, by name.
        loras: files and their scales, as they were typed; the names of these are ``"lora0"`` and on.
    """
    wrong: dict[str, str] = {}
    pictures, parts, pixels = Pictures(), [], {}
    try:
        pictures = Pictures.read(paths.get("image"))
        pictures = Pictures.read(paths.get("image"), paths.get(MASK))
    except GuidestackError as error:
        wrong["image" if not pictures.paths and "image" in paths else MASK] = str(error)
    for place, (path, scale) in enumerate(loras):
        try:
            part = Part.read(f"{path}={scale.strip() or 1}", "--lora")
            if part.scale is None:
                raise InputError("a scale is a number between -1000 and 1000, such as 0.8")
            Parts((part,)).identities()
            parts.append(part)
        except GuidestackError as error:
            wrong[f"lora{place}"] = str(error)
    for name, path in paths.items():
        if name not in PICTURES:
            try:
                pixels[name.removeprefix(OBJECTIVE)] = read_objective(path)
            except GuidestackError as error:
                wrong[name] = str(error)
    given = Given(pictures, Parts(tuple(parts)), pixels, dict(paths))
    told = {path: path.name for path in (*paths.values(), *(path for path, _ in loras))}
    for name, message in wrong.items():
        for path, own in told.items():
            message = message.replace(str(path), own)
        wrong[name] = message
    return given, wrong


def misfits(
    given: Given, stacks: Sequence[Stack], size: tuple[int, int] | None, own: tuple[int, int] | None
) -> dict[str, str]:
    """What the files do not fit: by the name of each, the command line's own line.

    Args:
        given: the files.
        stacks: that images are made with.
        size: height and width that were asked for; None for the model's own.
        own: the model's own, where they are known.
    """
    wrong: dict[str, str] = {}
    named = {name: given.paths[name].name for name in given.pictures.paths}
    try:
        given.pictures.at(size, own)
    except GuidestackError as error:
        wrong["image"] = str(error).replace(str(given.paths.get("image")), named.get("image", ""))
    found: Any = objectives(given.objectives, size=size or own)
    for name, text in needed(stacks).items():
        try:
            found.find(text).check_size()
        except GuidestackError as error:
            wrong[name] = str(error)
    return wrong
