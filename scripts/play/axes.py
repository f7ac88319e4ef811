"""The axes of a grid: which parameter takes which values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ...guidance.errors import InputError
from ...guidance.notation.registry import entry_of
from ...guidance.rule import Stack
from ..axes import Axis
from .controls import Place, changed, controls, places

MOST = 200  # images of a grid


@dataclass(frozen=True)
class Varied:
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


def axes_of(stack: Stack) -> dict[str, Varied]:
    """Everything that a grid can vary, by name: parameters of the stack's rules, and settings."""
    found: dict[str, Varied] = {}
    for place, rule in places(stack):
        for control in controls(rule):
            name = f"{entry_of(rule).name}.{control.name}"
            number = 2
            while name in found:
                name = f"{entry_of(rule).name}.{control.name} ({number})"
                number += 1
            found[name] = Varied(name, place, control.name)
    for setting in ("seed", "steps", "sampler", "prompt", "negative"):
        found[setting] = Varied(setting, None, setting)
    return found


def chosen(stack: Stack, name: str, text: str) -> Varied:
    """The axis of a name with the values of a text, which is read as behind ``--axis NAME=`` of the command line.

    Raises:
        InputError: the stack has no such parameter any more, or the values are none.
    """
    axes = axes_of(stack)
    if name not in axes:
        raise InputError(f"{stack} has no parameter {name}; choose another")
    return replace(axes[name], values=Axis.read(f"{axes[name].parameter}={text}").values)
