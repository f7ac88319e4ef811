"""Checks that rules make of their parameters, so that a wrong one is one clear line at construction."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from .errors import RuleError, nearest


def parameters(rule: Any) -> tuple[dataclasses.Field[Any], ...]:
    """The parameters of a rule or of its class: the fields of its dataclass."""
    return dataclasses.fields(rule)


def set_field(rule: object, name: str, value: Any) -> None:
    """Store a normalized parameter in a frozen dataclass, from its ``__post_init__``."""
    object.__setattr__(rule, name, value)


def number(rule: object, name: str, low: float = -math.inf, high: float = math.inf) -> float:
    """Make parameter `name` of `rule` a finite float in [low, high], so that ``CFG(4) == CFG(4.0)``.

    Raises:
        RuleError: it is something else.
    """
    value = getattr(rule, name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise RuleError(f"{type(rule).__name__}: {name} must be a finite number, got {value!r}")
    if not low <= value <= high:
        bounds = f"at least {low:g}" if math.isinf(high) else f"between {low:g} and {high:g}"
        raise RuleError(f"{type(rule).__name__}: {name} must be {bounds}, got {value!r}")
    set_field(rule, name, float(value))
    return float(value)


def choice(rule: object, name: str, valid: tuple[str, ...]) -> None:
    """Check that parameter `name` is one of `valid`.

    Raises:
        RuleError: it is not.
    """
    value = getattr(rule, name)
    if value not in valid:
        raise RuleError(f"{type(rule).__name__}: unknown {name} {value!r}{nearest(str(value), valid)}")


def interval(rule: object, name: str, low: float, high: float) -> None:
    """Make parameter `name` a pair of floats ``low <= first < second <= high``; the second may be infinite.

    Raises:
        RuleError: it is something else.
    """
    value = getattr(rule, name)
    if (
        not isinstance(value, tuple | list)
        or len(value) != 2
        or any(isinstance(end, bool) or not isinstance(end, int | float) for end in value)
        or not low <= value[0] < value[1] <= high
    ):
        bounds = f"{low:g} <= first < second" + ("" if math.isinf(high) else f" <= {high:g}")
        raise RuleError(f"{type(rule).__name__}: {name} must be two numbers, {bounds}; got {value!r}")
    set_field(rule, name, (float(value[0]), float(value[1])))


def strengths(rule: object, name: str) -> None:
    """Make parameter `name` a float >= 0, or a tuple of such floats.

    Raises:
        RuleError: it is something else.
    """
    value = getattr(rule, name)
    several = isinstance(value, tuple | list)
    for one in value if several else (value,):
        if isinstance(one, bool) or not isinstance(one, int | float) or not math.isfinite(one) or one < 0:
            raise RuleError(
                f"{type(rule).__name__}: {name} must be one number >= 0, or one for each prompt; got {value!r}"
            )
    set_field(rule, name, tuple(map(float, value)) if several else float(value))


def whole(rule: object, name: str, low: int) -> None:
    """Check that parameter `name` is a whole number, at least `low`.

    Raises:
        RuleError: it is something else.
    """
    value = getattr(rule, name)
    if type(value) is not int or value < low:
        raise RuleError(f"{type(rule).__name__}: {name} must be a whole number, {low} at least; got {value!r}")


def sample_axes(rule: object, name: str) -> None:
    """Make parameter `name` None or a tuple of axes, none of which is the batch's.

    Raises:
        RuleError: it is something else.
    """
    value = getattr(rule, name)
    if value is None:
        return
    good = isinstance(value, tuple | list) and all(type(axis) is int and axis for axis in value)
    if not good or not value or len(set(value)) < len(value):
        raise RuleError(
            f"{type(rule).__name__}: {name} are different whole numbers, none of them the batch's 0; got {value!r}"
        )
    set_field(rule, name, tuple(value))


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
