"""Files that rules read, and files and folders that are written whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RuleFile:
    """A file that a rule reads when a run begins.

    Args:
        path: the file.
        read: reads a file of this kind; it raises `InputError` for any other.
        bundled: whether the file comes with the package of the rule; False for a file that the user names.
    """

    path: Path
    read: Callable[[Path], object]
    bundled: bool = False


@contextmanager
def replacing(path: Path, make_folder: bool = True) -> Iterator[Path]:
    """Write a file atomically: yield a temporary name beside `path`, renamed to `path` at the end, removed on an error.

    Args:
        path: the file.
        make_folder: whether to make its folder where there is none, and those around it.
    """
    if make_folder:
        path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.part")
    try:
        yield beside
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def write_whole(path: Path, data: str | bytes, make_folder: bool = True) -> None:
    """Write the contents of a file atomically, as `replacing`; text as UTF-8."""
    with replacing(path, make_folder) as beside:
        beside.write_bytes(data.encode() if isinstance(data, str) else data)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Write a folder atomically: yield an empty one beside `path` that replaces it at the end; removed on an error."""
    beside, old = path.with_name(f".{path.name}.part"), path.with_name(f".{path.name}.old")
    for leftover in (beside, old):
        shutil.rmtree(leftover, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        yield beside
        if path.exists():  # a folder that is not empty cannot be renamed over
            path.rename(old)
        beside.rename(path)
    finally:
        for leftover in (beside, old):
            shutil.rmtree(leftover, ignore_errors=True)
