"""Reading of untrusted files and values: bounded in size, never blocking, refused with a message of one line."""

from __future__ import annotations

import json
import os
import stat
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from .errors import InputError, cut, reason, shown

DEEPEST = 150  # lists and mappings inside one another: four a rule inside a rule, and room
BITS = 1024  # of a whole number: what a float holds


def check_plain(value: Any, deepest: int = DEEPEST, bits: int = BITS) -> None:
    """Check the bounds of a value with lists and mappings in it: its depth, its whole numbers, its texts.

    Args:
        value: a value from YAML, JSON or a Python program. Anything but lists, mappings, texts and numbers passes.
        deepest: how deep lists and mappings may be nested.
        bits: how many bits a whole number may have.

    Raises:
        ValueError: lists or mappings nested too deep, or inside themselves; a whole number beyond every float; half of
            a surrogate pair in a text, which cannot be written as UTF-8.
    """
    waiting = [(value, 1)]
    while waiting:
        one, depth = waiting.pop()
        if isinstance(one, str):
            if not one.isascii():
                check_text(one)
        elif isinstance(one, int):
            if one.bit_length() > bits:
                raise ValueError(f"{shown(one)} is too large for a number")
        elif isinstance(one, Mapping | list | tuple | set):
            if depth > deepest:
                raise ValueError(f"lists and mappings are nested more than {deepest} deep")
            parts = [*one.keys(), *one.values()] if isinstance(one, Mapping) else one
            waiting += [(part, depth + 1) for part in parts]


def check_text(text: str) -> None:
    """Check that a text can be written as UTF-8.

    Raises:
        ValueError: it has half of a surrogate pair.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"the text {shown(text)} has half of a surrogate pair at character {error.start + 1}; write the character "
            "itself"
        ) from None


def is_folder(path: str | Path) -> bool:
    """Return whether the folder exists; False for a path that the system cannot have."""
    return os.path.isdir(path)  # noqa: PTH112  # `Path.is_dir` raises for a name that is too long


def exists(path: str | Path) -> bool:
    """Return whether the file or folder exists; False for a path that the system cannot have."""
    return os.path.exists(path)  # noqa: PTH110  # as above


def read_bytes(path: str | Path, what: str, largest: int) -> bytes:
    """Read a file of bounded size.

    Args:
        path: the file.
        what: what messages call it.
        largest: how many bytes it may have.

    Raises:
        InputError: it cannot be read, has more bytes, or is no plain file: a pipe may never end.
    """
    try:
        plain = stat.S_ISREG(os.stat(path).st_mode)  # noqa: PTH116  # as above
        data = _start(path, largest + 1) if plain else b""
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read the {what} {_quoted(path)}: {reason(error)}") from None
    if not plain:
        kind = "a folder" if is_folder(path) else "a pipe or a device"
        raise InputError(f"cannot read the {what} {_quoted(path)}: it is {kind}, and a file is expected")
    if len(data) > largest:
        raise InputError(f"the {what} {_quoted(path)} has more than {largest} bytes, the most that are read")
    return data


def _start(path: str | Path, count: int) -> bytes:
    with Path(path).open("rb") as file:
        return file.read(count)


def _quoted(path: str | Path) -> str:
    return repr(cut(str(path), 300))


_Fast: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The loader in C, where it was built, is ten times as fast; it refuses what is too deep for it by itself."""


class _Loader(_Fast):  # type: ignore[misc]
    """YAML without aliases, which could unfold without end, and without keys that come twice."""

    def get_single_node(self) -> Any:
        root = super().get_single_node()
        waiting, seen = [root], set()
        while waiting:
            node = waiting.pop()
            if id(node) in seen:
                raise yaml.YAMLError("anchors and aliases are not read")
            seen.add(id(node))
            if isinstance(node, yaml.SequenceNode):
                waiting += node.value
            elif isinstance(node, yaml.MappingNode):
                keys = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
                for key, count in keys.items():
                    if count > 1:
                        raise yaml.YAMLError(f"the key {shown(key)} comes twice")
                waiting += [one for pair in node.value for one in pair]
        return root

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (yaml.YAMLError, RecursionError):
            raise
        except Exception:  # each kind of value raises errors of its own: ValueError, KeyError, AttributeError, ...
            kind, line = node.tag.rpartition(":")[2], node.start_mark.line + 1
            raise yaml.YAMLError(f"line {line}: {shown(node.value)} cannot be read as {kind}") from None


def yaml_of(data: bytes, name: str, what: str) -> Any:
    """Read YAML, without aliases and repeated keys; every YAML file of this project is read by this function.

    Args:
        data: the YAML, whose length the caller bounds.
        name: the file's name, for messages.
        what: what the file should hold, for messages: ``"a stack"``.

    Raises:
        InputError: it is no YAML or not UTF-8; has anchors, a key twice, a value that is not what its tag says; or is
            refused by `check_plain`.
    """
    try:
        found = yaml.load(data.decode("utf-8-sig"), _Loader)
        check_plain(found)
    except UnicodeDecodeError as error:
        raise InputError(f"{name} is not UTF-8 text (byte {error.start})") from None
    except yaml.MarkedYAMLError as error:
        place = f" at line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise InputError(f"{name} is not the YAML of {what}{place}: {cut(str(error.problem), 300)}") from None
    except RecursionError:
        raise InputError(f"{name} is not the YAML of {what}: nested more than {DEEPEST} deep") from None
    except Exception as error:  # the library raises what its values raise
        raise InputError(f"{name} is not the YAML of {what}: {reason(error)}") from None
    return found


def json_of(data: bytes | str) -> Any:
    """Read JSON within the bounds of `check_plain`.

    Raises:
        ValueError: it is no JSON, not UTF-8, or refused by `check_plain`.
    """
    try:
        found = json.loads(data)
    except RecursionError:
        raise ValueError(f"lists and mappings are nested more than {DEEPEST} deep") from None
    check_plain(found)
    return found
