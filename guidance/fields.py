"""Checks of rules' parameters, which refuse a wrong one at construction in one line."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from .errors import InputError, RuleError, nearest, shown

LARGEST = 1e6
"""The largest size of a parameter: two of them times a prediction, and the square of that, are finite in float32."""
SMALLEST = 1e-9
"""The smallest parameter above 0 where 0 is no choice: far above what float32 rounds to 0 (1e-45)."""


@dataclass(frozen=True)
class Declared:
    """The kind and the bounds of a parameter, as a rule's check declares them, for forms and help texts.

    Args:
        kind: of value, which the check names.
        low: smallest number; of an interval the smallest end.
        high: largest number, which may be infinite.
        valid: the texts of a choice.
    """

    kind: Literal["number", "whole", "choice", "flag", "interval", "strengths", "axes", "blocks"]
    low: float = -math.inf
    high: float = math.inf
    valid: tuple[str, ...] = ()


_HEARD = "_heard"
"""The attribute in which a rule that `declared` makes collects what its checks declare."""


def declared(rule: Any, /, **changes: Any) -> Mapping[str, Declared]:
    """Return the kind and the bounds of a rule's parameters by name, as its checks declare them.

    Only the checks know the bounds, and they run when a rule is constructed, so the rule is constructed once more. The
    check of a parameter may depend on its value: many are not checked if they are None.

    Args:
        rule: the rule.
        changes: other values of parameters. A value that the rule refuses ends the checks; its own is still declared.

    >>> from guidestack import Rescale
    >>> declared(Rescale(0.7))["phi"]
    Declared(kind='number', low=0.0, high=1.0, valid=())
    """
    found: dict[str, Declared] = {}
    again = object.__new__(type(rule))
    object.__setattr__(again, _HEARD, found)
    values = {field.name: getattr(rule, field.name) for field in parameters(rule) if field.init}
    with contextlib.suppress(RuleError):
        again.__init__(**values | changes)
    return found


def _declare(rule: object, name: str, *of: Any, **more: Any) -> None:
    """Add a `Declared` with these arguments to what `declared` collects, if it constructs this rule."""
    heard = getattr(rule, _HEARD, None)
    if heard is not None:
        heard[name] = Declared(*of, **more)


def parameters(rule: Any) -> tuple[dataclasses.Field[Any], ...]:
    """The parameters of a rule or of its class: the fields of its dataclass."""
    return dataclasses.fields(rule)


def set_field(rule: object, name: str, value: Any) -> None:
    """Store a converted parameter in a frozen dataclass, which only its ``__post_init__`` should do.

    Args:
        rule: the dataclass.
        name: the field's name.
        value: the new value.
    """
    object.__setattr__(rule, name, value)


def plain(value: Any) -> Any:
    """Convert numbers and arrays of numpy and torch to numbers and lists; return anything else as it is.

    A tensor on the meta device, which holds no numbers, is returned as it is too.
    """
    return (
        value.tolist() if callable(getattr(value, "tolist", None)) and not getattr(value, "is_meta", False) else value
    )


def is_number(value: Any, largest: float = LARGEST) -> bool:
    """Return whether a plain value is a finite number of at most `largest` in size."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= largest


def number(rule: object, name: str, low: float = -LARGEST, high: float = LARGEST) -> float:
    """Check that a rule's parameter is a finite number in [low, high], and store it as a float.

    So ``CFG(4) == CFG(4.0)``; numbers of numpy and torch are converted too. Call it from ``__post_init__``.

    Args:
        rule: the rule, a frozen dataclass.
        name: the field's name.
        low: the smallest value.
        high: the largest value.

    Returns:
        The value as a float.

    Raises:
        RuleError: the value is something else.
    """
    _declare(rule, name, "number", low, high)
    value = plain(getattr(rule, name))
    if isinstance(value, bool) or not isinstance(value, int | float) or not -math.inf < value < math.inf:
        raise RuleError(f"{type(rule).__name__}: {name} must be a finite number, got {shown(value)}")
    if not low <= value <= high:
        bounds = f"between {low:g} and {high:g}"
        raise RuleError(f"{type(rule).__name__}: {name} must be {bounds}, got {shown(value)}")
    set_field(rule, name, float(value))
    return float(value)


def choice(rule: object, name: str, valid: tuple[str, ...]) -> None:
    """Check that a rule's parameter is one of some texts.

    Args:
        rule: the rule, a frozen dataclass.
        name: the field's name.
        valid: the texts.

    Raises:
        RuleError: the value is another; the message has the nearest text.
    """
    _declare(rule, name, "choice", valid=valid)
    value = getattr(rule, name)
    if not isinstance(value, str) or value not in valid:
        hint = nearest(value if isinstance(value, str) else "", valid)
        raise RuleError(f"{type(rule).__name__}: unknown {name} {shown(value)}{hint}")
    set_field(rule, name, str(value))


def flag(rule: object, name: str) -> None:
    """Check that a rule's parameter is True or False, and store it as Python's own.

    Raises:
        RuleError: the value is something else.
    """
    _declare(rule, name, "flag")
    value = plain(getattr(rule, name))
    if not isinstance(value, bool):
        raise RuleError(f"{type(rule).__name__}: {name} must be True or False, got {shown(value)}")
    set_field(rule, name, value)


def interval(rule: object, name: str, low: float, high: float) -> None:
    """Check that a rule's parameter is a pair ``low <= first < second <= high``, and store it as a tuple of floats.

    Args:
        rule: the rule, a frozen dataclass.
        name: the field's name.
        low: the smallest first number.
        high: the largest second number, which may be infinite.

    Raises:
        RuleError: the value is something else.
    """
    _declare(rule, name, "interval", low, high)
    value = plain(getattr(rule, name))
    ends = [plain(end) for end in value] if isinstance(value, tuple | list) else []
    if (
        len(ends) != 2
        or not all(is_number(end, sys.float_info.max) or end == math.inf for end in ends)  # they are only compared
        or not low <= ends[0] < ends[1] <= high
    ):
        bounds = f"{low:g} <= first < second" + ("" if math.isinf(high) else f" <= {high:g}")
        raise RuleError(f"{type(rule).__name__}: {name} must be two numbers, {bounds}; got {shown(value)}")
    set_field(rule, name, (float(ends[0]), float(ends[1])))


def strengths(rule: object, name: str) -> None:
    """Check that a rule's parameter is a number >= 0 or several, and store it as a float or a tuple of floats.

    Raises:
        RuleError: the value is something else.
    """
    _declare(rule, name, "strengths", 0, LARGEST)
    value = plain(getattr(rule, name))
    several = isinstance(value, tuple | list)
    numbers = [plain(one) for one in (value if several else (value,))]
    if not all(is_number(one) and one >= 0 for one in numbers):
        raise RuleError(
            f"{type(rule).__name__}: {name} must be one number between 0 and {LARGEST:g}, or one for each prompt; got "
            f"{shown(value)}"
        )
    set_field(rule, name, tuple(map(float, numbers)) if several else float(numbers[0]))


def whole(rule: object, name: str, low: int, high: float = LARGEST) -> None:
    """Check that a rule's parameter is a whole number in [low, high], and store it as an integer.

    Args:
        rule: the rule, a frozen dataclass.
        name: the field's name, whose value may also be a float that is a whole number.
        low: the smallest value.
        high: the largest value.

    Raises:
        RuleError: the value is something else.
    """
    _declare(rule, name, "whole", low, high)
    try:
        set_field(rule, name, count(name, getattr(rule, name), low, high))
    except InputError as error:
        raise RuleError(f"{type(rule).__name__}: {error}") from None


def count(name: str, value: Any, low: int = 1, high: float = LARGEST) -> int:
    """Return `value` as an integer between `low` and `high`; messages call it `name`.

    Raises:
        InputError: it is no whole number, or out of these bounds.
    """
    number = plain(value)
    if not is_number(number) or number != int(number) or not low <= number <= high:
        raise InputError(f"{name} must be a whole number between {low} and {high:g}; got {shown(number)}")
    return int(number)


def sample_axes(rule: object, name: str) -> None:
    """Make parameter `name` None or a tuple of axes, none of which is the batch's.

    Raises:
        RuleError: it is something else.
    """
    _declare(rule, name, "axes")
    value = plain(getattr(rule, name))
    if value is None:
        return
    axes = [plain(axis) for axis in value] if isinstance(value, tuple | list) else []
    good = all(type(axis) is int and axis and is_number(axis) for axis in axes)
    if not good or not axes or len(set(axes)) < len(axes):
        raise RuleError(
            f"{type(rule).__name__}: {name} are different whole numbers, none of them the batch's 0; got {shown(value)}"
        )
    set_field(rule, name, tuple(axes))


def axes_in(rule: object, name: str, shape: tuple[int, ...]) -> None:
    """Check that samples of a batch of `shape` have the axes that parameter `name` counts.

    Raises:
        RuleError: they have not.
    """
    for axis in getattr(rule, name) or ():
        if not (0 < axis < len(shape) or -len(shape) < axis < 0):
            raise RuleError(
                f"{type(rule).__name__}: samples of shape {shape[1:]} with a batch axis have no axis {axis}"
            )


def block_names(rule: object, name: str) -> None:
    """Make parameter `name` None or the names of blocks in one text, ``"7,8,9"``; a tuple and one number will do, too.

    Raises:
        RuleError: it is something else.
    """
    _declare(rule, name, "blocks")
    value = getattr(rule, name)
    if value is None:
        return
    several = value.split(",") if isinstance(value, str) else value if isinstance(value, tuple | list) else (value,)
    names = [_block_name(plain(one)) for one in several]
    if not names or not all(names):
        raise RuleError(
            f"{type(rule).__name__}: {name} names blocks of the network, such as 'mid', 'down.1' or '7,8,9'; got "
            f"{shown(value)}"
        )
    set_field(rule, name, ",".join(dict.fromkeys(names)))


def _block_name(value: object) -> str:
    """The name of one block; "" where it is none."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LARGEST:
        return str(value)
    return value.strip() if isinstance(value, str) and re.fullmatch(r"\s*\w+(\.\w+)*\s*", value) else ""
