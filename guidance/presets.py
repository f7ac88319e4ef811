"""Presets: stacks in YAML files, those of ``configs/`` by name and anybody's by path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from .config import from_config
from .errors import InputError, StackSyntaxError, nearest
from .stack import Stack

FOLDER = Path(__file__).parent.parent / "configs"
LARGEST = 100_000  # bytes; a stack is a few lines


def names() -> list[str]:
    """The presets that come with guidestack."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_preset(name: str | Path) -> Stack:
    """The stack of a preset.

    Args:
        name: a name, such as ``"rescale"``, or the path of a YAML file with the one key ``rules``.

    Raises:
        InputError: there is no such preset or file.
        StackSyntaxError, RuleError: the file holds no stack.

    >>> print(load_preset("rescale"))
    cfg(7.5) | rescale(0.7)
    """
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        if str(name) not in names():
            raise InputError(f"no preset {str(name)!r}{nearest(str(name), names())}")
        path = FOLDER / f"{name}.yaml"
    return from_config(mapping_of(path, "preset"))


def mapping_of(path: Path, what: str) -> Any:
    """What a YAML file of a stack holds, not yet checked to be one; messages call the file `what`.

    Raises:
        InputError: the file cannot be read.
        StackSyntaxError: it is not YAML, or not such as a stack needs.
    """
    try:
        with path.open("rb") as file:
            text = file.read(LARGEST + 1).decode("utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read the {what} {str(path)!r}: {error}") from None
    try:
        if len(text) > LARGEST or "&" in text:  # anchors could unfold without end, and a stack needs none
            raise yaml.YAMLError("too large, or with anchors")
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise StackSyntaxError(f"{str(path)!r} is not the YAML of a stack: {reason}") from None


def read(text: str) -> Stack:
    """A stack from what a user writes on the command line: its text, or ``@`` and a preset's name or path."""
    from .text import parse

    return load_preset(text[1:]) if text.startswith("@") else parse(text)
