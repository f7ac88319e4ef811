"""Where the files lie that a sweep names: beside it, or in the working directory.

Paths are made absolute when a sweep is read, so that what is stored of it works from anywhere.
"""

from __future__ import annotations

from pathlib import Path

MAX_BYTES = 100_000_000  # bytes of a file of prompts


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


def preset_located(template: str, folder: Path | None = None) -> str:
    """A template that is ``@`` and the path of a preset, with the absolute path; any other as it is."""
    name = template.removeprefix("@")
    return f"@{located(name, folder)}" if name != template and Path(name).suffix in (".yaml", ".yml") else template
