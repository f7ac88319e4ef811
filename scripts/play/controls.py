"""Controls for every rule, from what the rules say of their parameters; and what a control does to a stack.

A stack is changed by making another one: each function takes a stack and returns one, or raises the error of the rule
that refuses. The text of the stack and its controls are two views of it, so that they cannot disagree.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from ...guidance.errors import InputError, StackSyntaxError
from ...guidance.fields import LARGEST, Declared, declared, parameters
from ...guidance.notation.registry import Entry, entry_of, find, rules
from ...guidance.notation.text import parse, parse_call
from ...guidance.query import Query
from ...guidance.rule import Rule, Stack, literal
from ..plain import plain

Place = tuple[int | str, ...]
"""Where a rule stands: its number in the stack, then by turns a parameter that is a rule, and a number in that."""
Kind = Literal["number", "choice", "flag", "window", "text"]
MOST = 1000  # the longest range whose ends a slider has; longer ones are open, and the slider goes by the value
SIGMAS = (0.01, 100.0)  # the noise levels sigma/alpha that a window's slider has, beside 0 and infinity
NOTCHES = 100  # places of a slider


@dataclass(frozen=True)
class Slider:
    """The places of a slider and the values there.

    Args:
        low: the value of the first place.
        high: of the last.
        step: between two values; 0 where they are noise levels, whose logarithms are evenly spaced.
    """

    low: float
    high: float
    step: float

    @property
    def last(self) -> int:
        """The last place; the first is 0."""
        return round((self.high - self.low) / self.step) if self.step else NOTCHES

    def value(self, place: float) -> float:
        """The value at a place."""
        if self.step:
            return _short(self.low + place * self.step)
        if not 0 < place < self.last:
            return self.low if place <= 0 else self.high
        least, largest = map(math.log, SIGMAS)
        return _short(math.exp(least + (largest - least) * (place - 1) / (self.last - 2)), 3)

    def place(self, value: float) -> int:
        """The place nearest to a value."""
        if self.step:
            return min(self.last, max(0, round((value - self.low) / self.step)))
        if value <= 0 or math.isinf(value):
            return 0 if value <= 0 else self.last
        least, largest = map(math.log, SIGMAS)
        share = (math.log(value) - least) / (largest - least)
        return min(self.last - 1, max(1, 1 + round(share * (self.last - 2))))


@dataclass(frozen=True)
class Control:
    """One parameter of a rule.

    Args:
        name: of the parameter.
        kind: what is shown: a number, a choice, a flag, a window of two numbers, or a text.
        text: its value as a user types it; "" for None.
        optional: whether it may be None.
        main: whether it is shown at once; others are behind a "more".
        about: what the rule's docstring says of it.
        valid: the texts of a choice.
        slider: of a number or a window that has one.
    """

    name: str
    kind: Kind
    text: str
    optional: bool
    main: bool
    about: str = ""
    valid: tuple[str, ...] = ()
    slider: Slider | None = None


def controls(rule: Rule) -> list[Control]:
    """A control for each parameter that is no rule."""
    entry = entry_of(rule)
    abouts, hints = _abouts(entry), _hints(entry)
    heard = declared(rule)
    found = []
    for field in parameters(rule):
        value = getattr(rule, field.name)
        if isinstance(value, Rule):
            continue
        said = heard.get(field.name) or hints.get(field.name)
        optional = field.default is None or "None" in str(field.type)
        usual: tuple[Any, ...] = (value, field.default, _example_value(entry, field.name))
        near = [float(one) for one in usual if _plain_number(one)]
        kind, slider = _shape(said, value, near)
        found.append(
            Control(
                field.name,
                kind,
                as_typed(value),
                optional,
                field.default is dataclasses.MISSING or kind in ("number", "window"),
                abouts.get(field.name, ""),
                (*(("",) if optional else ()), *said.valid) if said and kind == "choice" else (),
                slider,
            )
        )
    return found


def _shape(said: Declared | None, value: Any, near: Sequence[float]) -> tuple[Kind, Slider | None]:
    if said is None or said.kind in ("strengths", "axes", "blocks"):
        return "text", None
    if said.kind == "interval":
        finite = math.isfinite(said.high)
        return "window", Slider(said.low, said.high, (said.high - said.low) / NOTCHES if finite else 0)
    if said.kind in ("number", "whole"):
        return "number", _slider(said, near)
    return ("flag" if said.kind == "flag" else "choice"), None


def _slider(said: Declared, near: Sequence[float]) -> Slider:
    """A slider over the range that a number may have, or over the part of it that is near to usual values."""
    low, high = said.low, said.high
    if high - low > MOST:
        size = max([abs(one) for one in near if one < LARGEST] or [1]) or 1
        reach = _nice(size * (4 if size >= 1 else 2))
        low, high = max(low, -reach if min(near, default=0) < 0 else 0), min(high, reach)
        low = min(low, high - 1) if high - low < 1 and said.kind == "whole" else low
    step = max(1, round((high - low) / NOTCHES)) if said.kind == "whole" else _nice((high - low) / NOTCHES)
    return Slider(low, high, step)


def _nice(value: float) -> float:
    """The nearest of 1, 2 and 5 times a power of ten that is no smaller."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(one * power for one in (1, 2, 5, 10) if one * power >= value * (1 - 1e-9))


def _short(value: float, digits: int = 6) -> float:
    return float(f"{value:.{digits}g}")


def _plain_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def as_typed(value: Any) -> str:
    """A value as a user types it: texts without quotes, None as nothing, windows without parentheses."""
    if value is None:
        return ""
    if isinstance(value, str | Query):
        return str(value)
    text = literal(value)
    return text[1:-1] if isinstance(value, tuple) and len(value) > 1 else text


@dataclass(frozen=True)
class _Value:
    value: Any


def _typed(text: str) -> Any:
    """The literal that was typed; what is none stays the text that it is, for the rule to refuse by its own line."""
    if not text:
        return text
    try:
        return parse_call(f"value(({text}))", "value", {"value": _Value}).value
    except StackSyntaxError:
        return text


@cache
def _example(entry: Entry) -> Rule | None:
    """The rule in the first of its examples."""
    for text in entry.examples:
        for part in parse(text).parts():
            if type(part) is entry.rule:
                return part
    return None


def _example_value(entry: Entry, name: str) -> Any:
    example = _example(entry)
    return getattr(example, name) if example else None


@cache
def _hints(entry: Entry) -> dict[str, Declared]:
    """Return what the rule's checks declare of parameters that have other values than in the current stack.

    A check hears of a value before it refuses it: so any number tells what a parameter should be that is None.
    """
    found: dict[str, Declared] = {}
    if (example := _example(entry)) is not None:
        for field in parameters(example):
            for heard in (declared(example), declared(example, **{field.name: 1.0})):
                if field.name in heard:
                    found.setdefault(field.name, heard[field.name])
    return found


@cache
def _abouts(entry: Entry) -> dict[str, str]:
    """What a rule's docstring says of each argument, in one line each."""
    doc = plain(inspect.getdoc(entry.rule) or "")
    part = re.search(r"^Args:\n((?:[ ]{4}.*\n|\n)*)", doc + "\n", re.MULTILINE)
    found = re.findall(r"^ {4}\*{0,2}(\w+): (.*(?:\n {8}.*)*)", part[1], re.MULTILINE) if part else []
    return {name: " ".join(text.replace("`", "").split()) for name, text in found}


# What a stack is made of, and others that differ in one place.


def inside(rule: Rule) -> list[tuple[str, Rule]]:
    """The parameters of a rule that are rules."""
    named = ((field.name, getattr(rule, field.name)) for field in parameters(rule))
    return [] if isinstance(rule, Stack) else [(name, value) for name, value in named if isinstance(value, Rule)]


def _with(rule: Rule, /, **values: Any) -> Rule:
    """The rule with other values of parameters."""
    return dataclasses.replace(rule, **values)  # type: ignore[type-var]  # every rule is a dataclass


def _several(rule: Rule) -> tuple[Rule, ...]:
    return rule.rules if isinstance(rule, Stack) else (rule,)


def places(stack: Rule, before: Place = ()) -> Iterator[tuple[Place, Rule]]:
    """Every rule of a stack with its place, outermost first."""
    for number, rule in enumerate(_several(stack)):
        yield (*before, number), rule
        for name, inner in inside(rule):
            yield from places(inner, (*before, number, name))


def at(stack: Rule, place: Place) -> Rule:
    """The rule at a place."""
    return next(rule for here, rule in places(stack) if here == place)


def replaced(stack: Rule, place: Place, *instead: Rule) -> Stack:
    """The stack with other rules, or none, in the place of one.

    Raises:
        CompositionError: they do not go with the others.
    """
    several = list(_several(stack))
    number, *deeper = place
    assert isinstance(number, int)  # places begin with a number
    if deeper:
        name, *rest = deeper
        rule = several[number]
        instead = (_with(rule, **{str(name): replaced(getattr(rule, str(name)), tuple(rest), *instead)}),)
    return Stack(*several[:number], *instead, *several[number + 1 :])


def changed(stack: Rule, place: Place, typed: Mapping[str, str]) -> Stack:
    """The stack with other values of parameters of one of its rules, as a user typed them.

    Args:
        stack: the stack.
        place: of the rule.
        typed: texts by the parameter's name. Several at once, since one value may be right only beside another.

    Raises:
        RuleError: the rule refuses a value.
        CompositionError: it does not go with the others any more.
    """
    rule = at(stack, place)
    fields = {field.name: field for field in parameters(rule)}
    values = {
        one.name: _value(rule, fields[one.name], one, typed[one.name].strip())
        for one in controls(rule)
        if one.name in typed
    }
    return replaced(stack, place, _with(rule, **values))


def _value(rule: Rule, field: dataclasses.Field[Any], control: Control, text: str) -> Any:
    """The value of a parameter that a user typed."""
    if text == control.text:
        return getattr(rule, field.name)
    if not text and control.optional:
        return None
    return text if control.kind == "choice" or _takes_text(rule, field) else _typed(text)


def _takes_text(rule: Rule, field: dataclasses.Field[Any]) -> bool:
    """Whether the parameter's values are texts."""
    return isinstance(getattr(rule, field.name), str | Query) or bool(
        re.match(r"str\b|Query\b|Blocks\b", str(field.type))
    )


def new(name: str) -> Rule:
    """A rule to begin with: as its example has it.

    Raises:
        InputError: it has no example.
    """
    entry = find(name)
    assert entry is not None  # the page lists those that are registered
    if (example := _example(entry)) is None:
        raise InputError(f"{name} has no example to begin with; write it into the text: {entry.signature}")
    return example


def added(stack: Rule, name: str) -> Stack:
    """The stack with one more rule at its end, as its example has it.

    Raises:
        CompositionError: it does not go with the others.
    """
    return Stack(*_several(stack), new(name))


def wrapped(stack: Rule, place: Place, name: str) -> Stack:
    """The stack with the wrapper `name` around one of its rules.

    Raises:
        RuleError, CompositionError: it cannot stand there.
    """
    wrapper = new(name)
    (parameter, _), *_ = inside(wrapper)
    return replaced(stack, place, _with(wrapper, **{parameter: at(stack, place)}))


def unwrapped(stack: Rule, place: Place) -> Stack:
    """The stack with what a wrapper wraps in the wrapper's place.

    Raises:
        CompositionError: it cannot stand there.
    """
    return replaced(stack, place, *(rule for _, inner in inside(at(stack, place)) for rule in _several(inner)))


def moved(stack: Rule, place: Place, by: int) -> Stack:
    """The stack with one of its rules one further to the left or to the right; as it is at the end.

    Raises:
        CompositionError: it cannot stand there.
    """
    *around, number = place
    assert isinstance(number, int)  # places end with a number
    beside = _several(stack) if not around else _several(getattr(at(stack, tuple(around[:-1])), str(around[-1])))
    if not 0 <= number + by < len(beside):
        return Stack(*_several(stack))
    order = list(beside)
    order.insert(number + by, order.pop(number))
    if not around:
        return Stack(*order)
    outer = at(stack, tuple(around[:-1]))
    return replaced(stack, tuple(around[:-1]), _with(outer, **{str(around[-1]): Stack(*order)}))


def names() -> list[str]:
    """The names of the rules that have an example to begin with."""
    return [entry.name for entry in rules() if _example(entry) is not None]


def wrappers() -> list[str]:
    """The names of those that stand around another rule."""
    return [name for name in names() if inside(new(name))]
