"""Strict reading of YAML: pydantic checks it, and what is wrong is said in one line with its place in the file."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    StrictStr,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from ..guidance import reading
from ..guidance.errors import GuidestackError, InputError, cut, nearest, reason, shown
from ..guidance.rule import literal
from ..pipelines.models.files import size_of

T = TypeVar("T")

MAX_BYTES = 2_000_000  # bytes of a sweep file
DEEPEST = 20  # lists and mappings in one another
LONGEST = 10_000  # characters of a text
BOUNDS = f"at most {LONGEST} characters, none of them NUL"
BITS = 63  # of a whole number, as a record can have it
MAX_VALUES = 10_000  # values of an axis, and cells of a sweep
PLAIN = (str, int, float, bool, type(None))
WORDS = {
    r"^\w+ should": "must",
    "valid string": "text",
    "valid integer": "whole number",
    "valid dictionary": "mapping",
    "a valid boolean": "true or false",
    " after validation.*": "",
}
"""What pydantic calls a kind of value, and what messages call it here."""

Size = tuple[int, int]


def read_yaml(data: bytes, name: str) -> Any:
    """The contents of a YAML file.

    Raises:
        InputError: it is no YAML, too large, too deep, has anchors or a key twice, or a text or a number that no record
            can have.
    """
    if len(data) > MAX_BYTES:
        raise InputError(f"{name} has {len(data)} bytes; a sweep has {MAX_BYTES} at most: put its prompts into a file")
    found = reading.yaml_of(data, name, "a sweep")
    check_plain(found, name)
    return found


def check_plain(value: Any, where: str) -> None:
    """Check that a value has only texts and numbers that a record can hold, in a bounded depth.

    Raises:
        InputError: it has others; the message begins with `where`.
    """
    try:
        reading.check_plain(value, DEEPEST, BITS)
    except ValueError as error:
        raise InputError(f"{where}: {error}") from None


class Checked(BaseModel):
    """A mapping of a YAML file with the fields as its keys, read strictly: no other keys, no conversion of values."""

    model_config = ConfigDict(strict=True, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _known(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            raise ValueError(f"must be a mapping with keys of {', '.join(cls.model_fields)}")
        check_keys(given, cls.model_fields)
        return given


def check_keys(mapping: Mapping[Any, Any], allowed: Collection[str]) -> None:
    """Check that a mapping has no other keys than `allowed`.

    Raises:
        ValueError: it has.
    """
    if unknown := [key for key in mapping if key not in allowed]:
        raise ValueError(f"unknown key {shown(unknown[0])}{meant(str(unknown[0]), allowed)}")


def checked(kind: TypeAdapter[T], value: Any, where: str, context: Any = None) -> T:
    """`value`, if it is what `kind` describes.

    Args:
        kind: a type with pydantic's annotations.
        value: as YAML holds it.
        where: it stands, for messages.
        context: for validators that need to know more.

    Raises:
        InputError: it is something else; the message names the first place that is wrong and what is expected there.
    """
    try:
        return kind.validate_python(value, context=context)
    except ValidationError as error:
        raise InputError(_message_of(error.errors(include_url=False)[0], where)) from error


def _message_of(error: Any, where: str) -> str:
    """An error of pydantic in one line."""
    given, context = error["input"], error.get("ctx", {})
    parts: list[str] = []
    for part in error["loc"]:
        if not isinstance(part, int):
            parts += [cut(part, 80)] * (part != "[key]")
        elif not parts or not parts[-1].startswith("entry "):  # of a list in a list the outer place is enough
            parts.append(f"entry {part + 1}")
    if error["type"] == "missing":
        return f"{': '.join([where, *parts[:-1]])}: give {parts[-1]}"
    place = ": ".join([where, *parts])
    if error["type"] == "literal_error":
        valid = re.findall("'([^']*)'", context["expected"])
        return f"{place}: unknown value {shown(given)}{meant(str(given), valid)}"
    said = error["msg"]
    for theirs, ours in WORDS.items():
        said = re.sub(theirs, ours, said)
    said = str(context.get("error", said))  # a validator's own words
    return f"{place} {said}; got {shown(given)}" if said.startswith("must ") else f"{place}: {said}"


def read_by(function: Callable[[str, Path | None], T]) -> AfterValidator:
    """A validator that reads a text by a function of the text and of the folder that the context names."""

    def read(text: str, info: ValidationInfo) -> T:
        try:
            return function(text, (info.context or {}).get("folder"))
        except GuidestackError as error:
            raise ValueError(str(error)) from error

    return AfterValidator(read)


def is_text(value: Any) -> bool:
    """Whether a value is a text within `BOUNDS`."""
    return isinstance(value, str) and len(value) <= LONGEST and "\0" not in value


def _text(value: str) -> str:
    if not is_text(value) or not value.strip():
        raise ValueError(f"must be a text that is not empty, of {BOUNDS}")
    return value.strip()


def _path(path: str) -> str:
    try:
        Path(path).expanduser().exists()
    except (OSError, RuntimeError) as error:  # a user without a home folder
        raise ValueError(f"{shown(path)} cannot be looked for: {reason(error)}") from error
    return path


Text = Annotated[StrictStr, AfterValidator(_text)]
"""A text that is not empty, without the blanks around it."""
PathText = Annotated[Text, AfterValidator(_path)]
"""A text that can be the path of a file or folder, whether there is one or not."""


def file(value: Any, where: str) -> str:
    """`value`, if it can be the path of a file or folder, whether there is one or not.

    Raises:
        InputError: it is something else.
    """
    check_plain(value, where)
    return checked(_PATH, value, where)


_PATH: TypeAdapter[str] = TypeAdapter(PathText)


def size(value: Any) -> Size | None:
    """Height and width in pixels, from ``"64x64"``; None for None or ``"model"``, the model's own.

    Raises:
        ValueError: another form, or sides out of bounds.
    """
    if value is None or value == "model":
        return None
    try:
        return size_of(str(value))
    except ValueError as error:
        raise ValueError(f"{error}, or be 'model'") from None


def size_text(value: Size | None) -> str | None:
    """The text that `size` reads back as `value`."""
    return f"{value[0]}x{value[1]}" if value else None


def axis_values(given: Any, most: int) -> tuple[Any, ...]:
    """The values of an axis: a list, or a range such as ``"1, 2, ..., 8"``, its end included.

    Args:
        given: as it is written.
        most: how many there may be.

    Raises:
        ValueError: no values, values that are no plain ones, or a range that misses its end.
    """
    if isinstance(given, str) and "..." in given:
        found = _range(given, most)
    elif isinstance(given, list):
        if len(given) > most:
            raise ValueError(f"has {len(given)} values; {most} are the most")
        found = tuple(tuple(one) if isinstance(one, list) else one for one in given)
    else:
        raise ValueError("must be a list of values, or a range such as '1, 2, ..., 8'")
    if not found:
        raise ValueError("must have values")
    for one in found:
        if not all(isinstance(part, PLAIN) for part in (one if isinstance(one, tuple) else (one,))):
            raise ValueError(f"a value is a number, a text, true, false or null; got {shown(one)}")
    return found


def once(given: tuple[Any, ...]) -> tuple[Any, ...]:
    """The values, none of which comes twice.

    Raises:
        ValueError: one does.
    """
    seen: set[str] = set()
    for one in given:
        if (text := value_text(one)) in seen:
            raise ValueError(f"the value {cut(text, 80)} comes twice")
        seen.add(text)
    return given


Axis = Annotated[tuple[Any, ...], BeforeValidator(lambda given: axis_values(given, MAX_VALUES))]
"""The values of an axis."""


def _range(given: str, most: int) -> tuple[Any, ...]:
    parts = [part.strip() for part in given.split(",")]
    found: list[Decimal] = []
    try:
        for place, part in enumerate(parts):
            if part != "...":
                found.append(Decimal(part))
                continue
            end, start = Decimal(parts[place + 1]), found[-1]
            step = start - found[-2] if len(found) > 1 else Decimal(1)
            count = (end - start) / step if step else Decimal(-1)
            if len(found) + count > most:
                raise ValueError(f"the range {shown(given)} has more than {most} values")
            if count != count.to_integral_value() or count < 1:
                told = f"{end:.6g} from {start:.6g} in steps of {step:.6g}"
                raise ValueError(f"the range {shown(given)} does not reach {told}")
            found += [start + step * index for index in range(1, int(count))]
    except (ArithmeticError, IndexError):
        raise ValueError(f"a range is numbers, such as '1, 2, ..., 8'; got {shown(given)}") from None
    if not all(value.is_finite() and -(2**BITS) <= value < 2**BITS for value in found):
        raise ValueError(f"a range has numbers between -2^63 and 2^63; got {shown(given)}")
    return tuple(int(value) if value == value.to_integral_value() else float(value) for value in found)


def value_text(value: Any) -> str:
    """The text of an axis's value in templates and in records."""
    return value if isinstance(value, str) else literal(value)


def meant(name: str, valid: Collection[str]) -> str:
    """Say which valid name is meant, and list all of them."""
    near = nearest(name, valid)
    return f"{near} Allowed: {', '.join(valid)}" if near.endswith("?") else near
