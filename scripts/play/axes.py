"""The axes of a grid: which parameter takes which values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ...guidance.errors import InputError, shown
from ...guidance.notation.registry import entry_of
from ...guidance.rule import Stack
from .controls import Place, changed, controls, places

MOST = 200  # images of a grid


@dataclass(frozen=True)
class Axis:
    """What a grid varies.

    Args:
        name: of the parameter, with that of its rule, or of a setting.
        place: of the rule; None for a setting.
        parameter: of the rule.
        values: that it takes, as a user types them.
    """

    name: str
    place: Place | None
    parameter: str
    values: tuple[str, ...] = ()

    def put(self, value: str, stack: Stack, typed: Mapping[str, str]) -> tuple[Stack, dict[str, str]]:
        """The stack and the settings with one of the values.

        Raises:
            RuleError, CompositionError: the rule refuses it.
        """
        if self.place is None:
            return stack, {**typed, self.parameter: value}
        return changed(stack, self.place, {self.parameter: value}), dict(typed)


def axes_of(stack: Stack) -> dict[str, Axis]:
    """Everything that a grid can vary, by name: parameters of the stack's rules, and settings."""
    found: dict[str, Axis] = {}
    for place, rule in places(stack):
        for control in controls(rule):
            name = f"{entry_of(rule).name}.{control.name}"
            number = 2
            while name in found:
                name = f"{entry_of(rule).name}.{control.name} ({number})"
                number += 1
            found[name] = Axis(name, place, control.name)
    for setting in ("seed", "steps", "sampler", "prompt", "negative"):
        found[setting] = Axis(setting, None, setting)
    return found


def read_values(text: str) -> tuple[str, ...]:
    """The values of an axis: ``"2, 4, 8"``, ``"2:8:4"`` from 2 to 8 in 4 values, or texts with ``;`` between them.

    Raises:
        InputError: there are none, or the range is none.

    >>> read_values("2:8:4"), read_values("(0, 0.5), (0.5, 1)"), read_values("a cat; a dog, black")
    (('2', '4', '6', '8'), ('(0, 0.5)', '(0.5, 1)'), ('a cat', 'a dog, black'))
    """
    parts = text.split(";") if ";" in text else _split(text)
    values = [part.strip() for part in parts if part.strip()]
    if len(values) == 1 and values[0].count(":") == 2:
        values = _range(values[0])
    if not values:
        raise InputError("an axis needs values, such as 2, 4, 8 or 2:8:4")
    return tuple(dict.fromkeys(values))


def _split(text: str) -> list[str]:
    """The parts between commas that stand in no parentheses."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "([") - (letter in ")]")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def _range(text: str) -> list[str]:
    try:
        low, high, count = (float(part) for part in text.split(":"))
    except ValueError:
        raise InputError(f"a range is from:to:count, such as 2:8:4; got {shown(text)}") from None
    if not count.is_integer() or not 2 <= count <= MOST:
        raise InputError(f"a range has 2 to {MOST} values; got {shown(text)}")
    return [f"{low + (high - low) * place / (count - 1):.6g}" for place in range(int(count))]


def chosen(stack: Stack, name: str, text: str) -> Axis:
    """The axis of a name with the values of a text.

    Raises:
        InputError: the stack has no such parameter any more, or the values are none.
    """
    axes = axes_of(stack)
    if name not in axes:
        raise InputError(f"{stack} has no parameter {name}; choose another")
    return replace(axes[name], values=read_values(text))
