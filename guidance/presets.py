"""Presets: stacks in YAML files, those of ``configs/`` by name and anybody's by path.

A preset has the one key ``rules``. One that was tuned may say for what, under a second key: ``tuned``, with ``model``,
``fingerprint``, ``sampler`` and ``steps``. That changes nothing in the stack.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from .config import from_config
from .errors import InputError, StackSyntaxError, nearest
from .stack import Stack
from .text import PRESET, parse

FOLDER = Path(__file__).parent.parent / "configs"
LARGEST = 100_000  # bytes; a stack is a few lines
TUNED = "tuned"
"""The key of what a preset was tuned for."""


@dataclass(frozen=True)
class TunedFor:
    """What a preset was tuned for.

    Args:
        model: its name.
        sampler: short name.
        steps: of the sampler.
        fingerprint: of the model's folder; None for a model that has none.
    """

    model: str
    sampler: str
    steps: int
    fingerprint: str | None = None


def names() -> list[str]:
    """The presets that come with guidestack."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_preset(name: str | Path) -> Stack:
    """The stack of a preset.

    Args:
        name: a name, such as ``"rescale"``, or the path of a YAML file with the key ``rules``.

    Raises:
        InputError: there is no such preset or file.
        StackSyntaxError, RuleError: the file holds no stack.

    >>> print(load_preset("rescale"))
    cfg(7.5) | rescale(0.7)
    """
    return from_config(mapping_of(path_of(name), "preset"))


def path_of(name: str | Path) -> Path:
    """The file of a preset.

    Raises:
        InputError: there is no preset of that name; a path is not looked at.
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        return path
    if str(name) not in names():
        hint = nearest(str(name), names())
        listed = "" if "expected one of" in hint else f" The presets are {', '.join(names())}; a file ends in .yaml"
        raise InputError(f"no preset {str(name)!r}{hint}{listed}")
    return FOLDER / f"{name}.yaml"


def tuned_for(name: str | Path) -> TunedFor | None:
    """What a preset says that it was tuned for; None where it does not say.

    Raises:
        InputError: there is no such preset or file.
        StackSyntaxError: the file is no preset, or says it in another form.
    """
    path = path_of(name)
    whole = _read(path, "preset")
    told = whole.get(TUNED) if isinstance(whole, Mapping) else None
    if told is None:
        return None
    kinds = {"model": str, "sampler": str, "steps": int, "fingerprint": str}
    wanted = set(kinds) - {"fingerprint"}
    if (
        not isinstance(told, Mapping)
        or not wanted <= set(told) <= set(kinds)
        or any(type(value) is not kinds[key] for key, value in told.items())
    ):
        raise StackSyntaxError(
            f"{str(path)!r}: {TUNED} is a mapping of model, sampler, steps (a number) and, if there is one, fingerprint"
        )
    return TunedFor(**{str(key): value for key, value in told.items()})


def mapping_of(path: Path, what: str) -> Any:
    """What a YAML file of a stack holds, not yet checked to be one; messages call the file `what`.

    What it was tuned for is left out.

    Raises:
        InputError: the file cannot be read.
        StackSyntaxError: it is not YAML, or not such as a stack needs.
    """
    whole = _read(path, what)
    return {key: value for key, value in whole.items() if key != TUNED} if isinstance(whole, dict) else whole


def _read(path: Path, what: str) -> Any:
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


def name_in(text: str) -> str | None:
    """The name or path in ``@NAME``; None where `text` is that of a stack."""
    text = text.strip()
    return text[len(PRESET) :] if text.startswith(PRESET) else None


def read(text: str) -> Stack:
    """A stack from what a user writes: its text, or ``@`` and a preset's name or path.

    Raises:
        InputError: there is no such preset or file.
        StackSyntaxError, RuleError: the text or the file holds no stack.
    """
    name = name_in(text)
    return parse(text) if name is None else load_preset(name)
