"""Presets: stacks in YAML files, those of ``configs/`` by name and anybody's by path.

A preset has the one key ``rules``. One that was tuned may say for what, under a second key: ``tuned``, with ``model``,
``fingerprint``, ``sampler`` and ``steps``. That changes nothing in the stack.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import GuidestackError, InputError, StackSyntaxError, cut, nearest, shown
from ..fields import is_number, parameters, plain
from ..reading import read_bytes, yaml_of
from ..rule import Rule, Stack
from .config import from_config
from .registry import RULES, find
from .text import PRESET, parse

FOLDER = Path(__file__).parents[2] / "configs"
SUFFIXES = (".yaml", ".yml")
MAX_BYTES = 32_000  # bytes; a stack is a few lines
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
        InputError: there is no such preset or file, or it is no YAML.
        StackSyntaxError, RuleError: the file holds no stack.

    >>> print(load_preset("rescale"))
    cfg(7.5) | rescale(0.7)
    """
    path = path_of(name)
    return stack_in(mapping_of(path, "preset"), repr(str(path)))


def stack_in(mapping: Any, where: str) -> Stack:
    """Read the stack in a file's mapping.

    Args:
        mapping: as `mapping_of` returns it.
        where: the file, for messages.

    Raises:
        StackSyntaxError, RuleError: the mapping is not that of a stack.
    """
    try:
        return from_config(mapping)
    except GuidestackError as error:
        raise type(error)(f"{where}: {error}") from None


def path_of(name: str | Path) -> Path:
    """The file of a preset.

    Raises:
        InputError: there is no preset of that name; a path is not looked at.
    """
    path = Path(name)
    if path.suffix in SUFFIXES:
        return path
    if str(name) not in names():
        hint = nearest(str(name), names())
        raise InputError(
            f"no preset {shown(str(name))}{hint} (`guidestack rules --presets` lists them all; a file ends in .yaml)"
        )
    return FOLDER / f"{name}.yaml"


def tuned_for(name: str | Path) -> TunedFor | None:
    """What a preset says that it was tuned for; None where it does not say.

    Raises:
        InputError: there is no such preset or file, or it is no YAML.
        StackSyntaxError: the file says it in another form.
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
    """Read the mapping in a YAML file of a stack, without checking that it is a stack; messages call the file `what`.

    The key ``tuned`` is left out.

    Raises:
        InputError: the file cannot be read, or is no YAML.
    """
    whole = _read(path, what)
    return {key: value for key, value in whole.items() if key != TUNED} if isinstance(whole, dict) else whole


def _read(path: Path, what: str) -> Any:
    return yaml_of(read_bytes(path, what, MAX_BYTES), repr(str(path)), "a stack")


def name_in(text: str) -> str | None:
    """The name or path in ``@NAME``; None where `text` is that of a stack."""
    text = text.strip()
    return text[len(PRESET) :] if text.startswith(PRESET) else None


def read(text: str) -> Stack:
    """A stack from what a user writes: its text, or ``@`` and a preset's name or path.

    Raises:
        InputError: there is no such preset or file, or it is no YAML.
        StackSyntaxError, RuleError: the text or the file holds no stack.
    """
    if (name := name_in(text)) is not None:
        return load_preset(name)
    name = text.strip()
    if name.endswith(SUFFIXES) or name in names():
        kind = "a file" if name.endswith(SUFFIXES) else "a preset"
        raise StackSyntaxError(f"{shown(name)} is the name of {kind}; write {PRESET}{cut(name, 80)}")
    return parse(text)


def as_stack(stack: Rule | str | Mapping[str, Any]) -> Stack:
    """Convert any form of a stack to a stack: a stack, one rule, text, ``"@PRESET"``, or a mapping.

    Text that does not come from the user, such as a file's, goes through `parse` instead, which reads no files.

    Args:
        stack: the stack. Text that begins with ``@`` is a preset's name, or the path of a file ``.yaml``.

    Raises:
        InputError: there is no such preset or file.
        StackSyntaxError: `stack` is something else; the message says what to write.
        GuidestackError: as `parse` and `from_config`.
    """
    if isinstance(stack, str):
        return read(stack)
    if isinstance(stack, Rule):
        return stack if isinstance(stack, Stack) else Stack(stack)
    if instead := _instead(plain(stack)):
        raise StackSyntaxError(f"{shown(stack)} is no stack; write {instead}")
    if isinstance(stack, Mapping):
        return from_config(stack)
    raise StackSyntaxError(f"expected a stack, a rule, its text or its mapping; got {type(stack).__name__}")


def _instead(given: Any) -> str:
    """Return how to write what was probably meant by a value that is not a stack; "" if that is unclear."""
    if given is None:
        return "stack() for the unguided model"
    if is_number(given):
        return f"'cfg({given:g})'"
    if isinstance(given, list | tuple) and given:
        if all(isinstance(one, Rule) for one in given):
            return "Stack(first, second), or first | second"
        if all(isinstance(one, str) for one in given):
            return shown(" | ".join(given))
    if isinstance(given, type) and issubclass(given, Rule):
        return f"{given.__name__}(...) with its parameters"
    if isinstance(given, Mapping) and len(given) == 1 and set(given) != {RULES}:
        ((name, value),) = given.items()
        if entry := find(name):
            arguments = value if isinstance(value, Mapping) else {parameters(entry.rule)[0].name: value}
            return f"{{'rules': [{{{name!r}: {shown(dict(arguments))}}}]}}"
    return ""
