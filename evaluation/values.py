"""Strict reading of a sweep's YAML: one clear line for whatever is wrong, with the nearest name that would be right."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from ..guidance import reading
from ..guidance.errors import InputError, cut, nearest, shown
from ..guidance.reading import yaml_of
from ..guidance.rule import literal

LARGEST = 2_000_000  # bytes of a sweep file
DEEPEST = 20  # lists and mappings in one another
LONGEST = 10_000  # characters of a text
BITS = 63  # of a whole number, as a record can have it
MOST = 10_000  # values of an axis, and cells of a sweep
LARGEST_SIDE = 8_192  # pixels

Size = tuple[int, int]


def read_yaml(data: bytes, name: str) -> Any:
    """What a YAML file holds.

    Raises:
        InputError: it is no YAML, too large, too deep, has anchors or a key twice, or a text or a number that no record
            can have.
    """
    if len(data) > LARGEST:
        raise InputError(f"{name} has {len(data)} bytes; a sweep has {LARGEST} at most: put its prompts into a file")
    found = yaml_of(data, name, "a sweep")
    check_plain(found, name)
    return found


def check_plain(value: Any, where: str) -> None:
    """Check that a value as it was read has texts and numbers that a record can hold, in a bounded depth.

    Raises:
        InputError: it has not.
    """
    try:
        reading.check_plain(value, DEEPEST, BITS)
    except ValueError as error:
        raise InputError(f"{where}: {error}") from None


def check_keys(mapping: Any, allowed: Collection[str], where: str) -> Mapping[str, Any]:
    """`mapping`, with no other keys than `allowed`.

    Raises:
        InputError: it is no mapping, or has one.
    """
    if not isinstance(mapping, Mapping):
        raise InputError(f"{where} must be a mapping with keys of {', '.join(allowed)}; got {shown(mapping)}")
    for key in mapping:
        if key not in allowed:
            raise InputError(f"{where}: unknown key {shown(key)}{meant(str(key), allowed)}")
    return mapping


def whole(value: Any, where: str, low: int, high: int) -> int:
    """A whole number in [low, high].

    Raises:
        InputError: it is something else.
    """
    if type(value) is not int or not low <= value <= high:
        raise InputError(f"{where} must be a whole number, {low} to {high}; got {shown(value)}")
    return value


def flag(value: Any, where: str) -> bool:
    """True or false.

    Raises:
        InputError: it is something else.
    """
    if not isinstance(value, bool):
        raise InputError(f"{where} must be true or false; got {shown(value)}")
    return value


def choice(value: Any, where: str, valid: Collection[str]) -> str:
    """One of some words.

    Raises:
        InputError: it is something else.
    """
    if value is False and "none" in valid:  # `off` and `no` are YAML for false
        return "none"
    if not isinstance(value, str) or value not in valid:
        raise InputError(f"{where}: unknown value {shown(value)}{meant(str(value), valid)}")
    return value


def text(value: Any, where: str) -> str:
    """A text.

    Raises:
        InputError: it is something else, empty, longer than `LONGEST`, or has a NUL character.
    """
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{where} must be a text that is not empty; got {shown(value)}")
    check_plain(value, where)
    if len(value) > LONGEST or "\0" in value:
        raise InputError(
            f"{where} must be a text of at most {LONGEST} characters, none of them NUL; got {shown(value)}"
        )
    return value.strip()


def file(value: Any, where: str) -> str:
    """A text that can be the path of a file or folder, whether there is one or not.

    Raises:
        InputError: it is something else.
    """
    path = text(value, where)
    try:
        Path(path).expanduser().exists()
    except (OSError, RuntimeError) as error:  # a user without a home folder
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{where}: {shown(path)} cannot be looked for: {reason}") from error
    return path


def size(value: Any, where: str) -> Size | None:
    """Height and width in pixels, from ``"64x64"``; None for None or ``"model"``, the model's own.

    Raises:
        InputError: another form.
    """
    if value is None or value == "model":
        return None
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", value.lower()) if isinstance(value, str) else None
    if match is None:
        raise InputError(f"{where} must be HEIGHTxWIDTH in pixels, such as 64x64, or 'model'; got {shown(value)}")
    height, width = int(match[1]), int(match[2])
    if not (0 < height <= LARGEST_SIDE and 0 < width <= LARGEST_SIDE):
        raise InputError(f"{where}: a side has 1 to {LARGEST_SIDE} pixels; got {shown(value)}")
    return height, width


def size_text(value: Size | None) -> str | None:
    """What `size` reads."""
    return f"{value[0]}x{value[1]}" if value else None


def values(given: Any, where: str, most: int = MOST) -> tuple[Any, ...]:
    """The values of an axis: a list, or a range such as ``"1, 2, ..., 8"``, its end included.

    Args:
        given: as it is written.
        where: it stands, for messages.
        most: how many there may be.

    Raises:
        InputError: no values, values that are no plain ones, one that comes twice, or a range that misses its end.
    """
    if isinstance(given, str) and "..." in given:
        found = _range(given, where, most)
    elif isinstance(given, list):
        if len(given) > most:
            raise InputError(f"{where} has {len(given)} values; {most} are the most")
        found = tuple(tuple(one) if isinstance(one, list) else one for one in given)
    else:
        raise InputError(f"{where} must be a list of values, or a range such as '1, 2, ..., 8'; got {shown(given)}")
    if not found:
        raise InputError(f"{where} has no values")
    for one in found:
        plain = one if isinstance(one, tuple) else (one,)
        if not all(part is None or isinstance(part, str | int | float | bool) for part in plain):
            raise InputError(f"{where}: a value is a number, a text, true, false or null; got {shown(one)}")
    seen: set[str] = set()
    for one in map(value_text, found):
        if one in seen:
            raise InputError(f"{where}: the value {cut(one, 80)} comes twice")
        seen.add(one)
    return found


def _range(given: str, where: str, most: int) -> tuple[Any, ...]:
    parts = [part.strip() for part in given.split(",")]
    try:
        found: list[Decimal] = []
        for place, part in enumerate(parts):
            if part != "...":
                found.append(Decimal(part))
                continue
            if not found or place + 1 == len(parts):
                raise InvalidOperation
            end, start = Decimal(parts[place + 1]), found[-1]
            step = start - found[-2] if len(found) > 1 else Decimal(1)
            count = (end - start) / step if step else Decimal(-1)
            if count != count.to_integral_value() or not 1 <= count <= most:
                if count > most:
                    raise InputError(f"{where}: the range {shown(given)} has more than {most} values")
                told = f"{end:.6g} from {start:.6g} in steps of {step:.6g}"
                raise InputError(f"{where}: the range {shown(given)} does not reach {told}")
            found += [start + step * index for index in range(1, int(count))]
            if len(found) > most:
                raise InputError(f"{where}: the range {shown(given)} has more than {most} values")
    except (InvalidOperation, ArithmeticError):
        raise InputError(f"{where}: a range is numbers, such as '1, 2, ..., 8'; got {shown(given)}") from None
    if not all(value.is_finite() and -(2**BITS) <= value < 2**BITS for value in found):
        raise InputError(f"{where}: a range has numbers between -2^63 and 2^63; got {shown(given)}")
    return tuple(int(value) if value == value.to_integral_value() else float(value) for value in found)


def value_text(value: Any) -> str:
    """A value as it is put into a template and into the records."""
    return value if isinstance(value, str) else literal(value)


def meant(name: str, valid: Collection[str]) -> str:
    """Say which valid name is meant, and list all of them."""
    near = nearest(name[:60], valid)
    return f"{near} Allowed: {', '.join(valid)}" if near.endswith("?") else near
