"""The list of the images in a folder: ``manifest.jsonl``, a line of JSON for each image.

Lines are only ever appended, each by one write, so that several processes may share a folder. A line is written just
before its image takes its name. So every image has a line, whatever interrupts a run; an image that is made again has
several, of which the last one counts; a line may be of an image that was not finished; where processes write at once,
an empty line may stand between two.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...guidance.errors import InputError, reason
from ...guidance.reading import json_of

NAME = "manifest.jsonl"


def append(folder: Path, file: str, recipe: Mapping[str, Any], evaluations: int, seconds: float) -> None:
    """Add the line of an image that is about to be written.

    Args:
        folder: of the images and the manifest.
        file: the image's path in that folder.
        recipe: what it takes to make it again, as the image itself has it.
        evaluations: network evaluations that it cost.
        seconds: that it took; of a batch its share.

    Raises:
        InputError: the manifest cannot be written: the folder, the rights, a full disk.
    """
    told = {"file": file, "recipe": recipe, "evaluations": evaluations, "seconds": seconds}
    line = json.dumps(told, ensure_ascii=False).encode() + b"\n"
    path = folder / NAME
    try:
        with path.open("ab+", buffering=0) as open_file:
            if end := open_file.seek(0, os.SEEK_END):
                open_file.seek(end - 1)
                if open_file.read(1) != b"\n":  # a full disk has cut the last line
                    line = b"\n" + line
            if open_file.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
        raise InputError(f"cannot write {path}: {reason(error)}; choose another --out or make room") from error


def read(folder: str | Path) -> dict[str, dict[str, Any]]:
    """The last line of each image that is in a folder, by the image's path in it.

    Args:
        folder: the ``--out`` of ``guidestack generate``.

    Returns:
        For each image ``file``, ``recipe``, ``evaluations`` and ``seconds``. Lines that a full disk has cut off are
        left out, and those of images that are not there.

    Raises:
        InputError: the folder has no manifest, or it cannot be read.
    """
    found: dict[str, dict[str, Any]] = {}
    path = Path(folder) / NAME
    try:
        with path.open("rb") as lines:
            for line in lines:
                try:
                    told = json_of(line)
                except ValueError:
                    continue
                if isinstance(told, dict) and isinstance(told.get("file"), str):
                    found[told["file"]] = told
    except OSError as error:
        raise InputError(f"cannot read {path}: {reason(error)}; `guidestack generate` writes it") from error
    there = {one.name for one in path.parent.iterdir()}
    return {file: told for file, told in found.items() if file in there}
