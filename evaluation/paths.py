"""Where the files lie that a sweep names: beside it, or in the working directory.

Paths are made absolute when a sweep is read, so that what is stored of it works from anywhere.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

LARGEST = 100_000_000  # bytes of a file of prompts


def located(path: str, folder: Path | None = None) -> str:
    """The absolute path of a file or folder: beside the sweep if it is there, else in the working directory.

    Args:
        path: as it is written; ``~`` is the home folder.
        folder: of the sweep; None where it has none.

    Returns:
        The path without links; `path` itself where nothing is there.
    """
    for base in (folder or Path(), Path()):
        try:
            found = base / Path(path).expanduser()
            if path and found.exists():
                return str(found.resolve())
        except (OSError, ValueError, RuntimeError):  # no name of a file, such as one that is too long
            break
    return path


def contents(path: str | Path, most: int = LARGEST) -> bytes:
    """The contents of a file of this machine.

    A pipe or a device, which may have no end, is not read.

    Raises:
        OSError: it cannot be read, is no regular file, or is larger than `most` bytes; it has a reason as `strerror`.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with os.fdopen(descriptor, "rb") as file:
        told = os.fstat(descriptor)
        if not stat.S_ISREG(told.st_mode):
            raise OSError(errno.EINVAL, "it is a folder, a pipe or a device, and not a file")
        if told.st_size > most:
            raise OSError(errno.EFBIG, f"it has {told.st_size} bytes, and {most} are read at most")
        return file.read()


def preset_located(template: str, folder: Path | None = None) -> str:
    """A template that is ``@`` and the path of a preset, with the absolute path; any other as it is."""
    name = template.removeprefix("@")
    return f"@{located(name, folder)}" if name != template and Path(name).suffix in (".yaml", ".yml") else template
