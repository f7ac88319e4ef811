"""Strict reading of a sweep's YAML: one clear line for whatever is wrong, with the nearest name that would be right."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from decimal import Decimal, InvalidOperation
from typing import Any

from ..guidance.errors import InputError, nearest
from ..guidance.reading import yaml_of
from ..guidance.registry import literal

LARGEST = 10_000_000  # bytes of a sweep file
MOST = 100_000  # values of a range

Size = tuple[int, int]


def read_yaml(data: bytes, name: str) -> Any:
    """What a YAML file holds.

    Raises:
        InputError: it is no YAML, too large, or has anchors or a key twice.
    """
    if len(data) > LARGEST:
        raise InputError(f"{name} has {len(data)} bytes; a sweep has {LARGEST} at most: put its prompts into a file")
    return yaml_of(data, name, "a sweep")


def check_keys(mapping: Any, allowed: Collection[str], where: str) -> Mapping[str, Any]:
    """`mapping`, with no other keys than `allowed`.

    Raises:
        InputError: it is no mapping, or has one.
    """
    if not isinstance(mapping, Mapping):
        raise InputError(f"{where} is a mapping with keys of {', '.join(allowed)}; got {shown(mapping)}")
    for key in mapping:
        if key not in allowed:
            raise InputError(f"{where}: unknown key {str(key)!r}{meant(str(key), allowed)}")
    return mapping


def whole(value: Any, where: str, low: int, high: int) -> int:
    """A whole number in [low, high].

    Raises:
        InputError: it is something else.
    """
    if type(value) is not int or not low <= value <= high:
        raise InputError(f"{where} is a whole number, {low} to {high}; got {shown(value)}")
    return value


def flag(value: Any, where: str) -> bool:
    """True or false.

    Raises:
        InputError: it is something else.
    """
    if not isinstance(value, bool):
        raise InputError(f"{where} is true or false; got {shown(value)}")
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
        InputError: it is something else, or empty.
    """
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{where} is a text; got {shown(value)}")
    return value.strip()


def size(value: Any, where: str) -> Size | None:
    """Height and width in pixels, from ``"64x64"``; None for None or ``"model"``, the model's own.

    Raises:
        InputError: another form.
    """
    if value is None or value == "model":
        return None
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", value.lower()) if isinstance(value, str) else None
    if match is None:
        raise InputError(f"{where} is HEIGHTxWIDTH in pixels, such as 64x64, or 'model'; got {shown(value)}")
    return int(match[1]), int(match[2])


def size_text(value: Size | None) -> str | None:
    """What `size` reads."""
    return f"{value[0]}x{value[1]}" if value else None


def values(given: Any, where: str) -> tuple[Any, ...]:
    """The values of an axis: a list, or a range such as ``"1, 2, ..., 8"``, its end included.

    Raises:
        InputError: no values, values that are no plain ones, one that comes twice, or a range that misses its end.
    """
    if isinstance(given, str) and "..." in given:
        found = _range(given, where)
    elif isinstance(given, list):
        found = tuple(tuple(one) if isinstance(one, list) else one for one in given)
    else:
        raise InputError(f"{where} is a list of values, or a range such as '1, 2, ..., 8'; got {shown(given)}")
    if not found:
        raise InputError(f"{where} has no values")
    for one in found:
        plain = one if isinstance(one, tuple) else (one,)
        if not all(part is None or isinstance(part, str | int | float | bool) for part in plain):
            raise InputError(f"{where}: a value is a number, a text, true, false or null; got {shown(one)}")
    texts = [value_text(one) for one in found]
    for one in texts:
        if texts.count(one) > 1 and len(texts) < MOST:
            raise InputError(f"{where}: the value {one} comes twice")
    return found


def _range(given: str, where: str) -> tuple[Any, ...]:
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
            if count != count.to_integral_value() or not 1 <= count <= MOST:
                raise InputError(f"{where}: the range {given!r} does not reach {end} from {start} in steps of {step}")
            found += [start + step * index for index in range(1, int(count))]
    except (InvalidOperation, ArithmeticError):
        raise InputError(f"{where}: a range is numbers, such as '1, 2, ..., 8'; got {given!r}") from None
    if not all(value.is_finite() for value in found):
        raise InputError(f"{where}: a range has finite numbers; got {given!r}")
    return tuple(int(value) if value == value.to_integral_value() else float(value) for value in found)


def value_text(value: Any) -> str:
    """A value as it is put into a template and into the records."""
    return value if isinstance(value, str) else literal(value)


def meant(name: str, valid: Collection[str]) -> str:
    """Say which valid name is meant, and list all of them."""
    near = nearest(name, valid)
    return f"{near} Allowed: {', '.join(valid)}" if near.endswith("?") else near


def shown(value: Any) -> str:
    """`value` cut to what fits into a message."""
    written = repr(value)
    return written if len(written) <= 60 else f"{written[:59]}…"
