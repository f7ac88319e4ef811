"""The mapping form of a stack, for YAML and JSON: ``{"rules": [{"cfg": {"scale": 4}}]}``. Strict both ways."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import StackSyntaxError, nearest, shown
from ..fields import is_number, parameters, plain
from ..query import Query
from ..reading import check_plain
from ..rule import Rule
from ..stack import Stack
from .registry import RULES, entry_of, given, make, rules
from .text import bounded


def to_config(rule: Rule) -> dict[str, Any]:
    """The mapping that `from_config` reads back: plain values only, ready for YAML or JSON.

    >>> from guidestack import CFG
    >>> to_config(CFG(4))
    {'rules': [{'cfg': {'scale': 4.0}}]}
    """
    if not isinstance(rule, Stack):
        rule = Stack(rule)
    return {RULES: [_plain(part) for part in rule.rules]}


def _plain(value: Any) -> Any:
    if isinstance(value, Stack):
        return to_config(value)
    if isinstance(value, Rule):
        return {entry_of(value).name: {field.name: _plain(given) for field, given in given(value)}}
    if isinstance(value, Query):
        return str(value)
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def from_config(mapping: Mapping[str, Any]) -> Stack:
    """Read a stack from ``{"rules": [{name: {argument: value, ...}}, ...]}``.

    Args:
        mapping: as `to_config` writes it, or as YAML holds it.

    Raises:
        StackSyntaxError: an unknown key or rule, a missing argument, or another form; values beyond the bounds of
            docs/limits.md.
        RuleError: a rule refuses its parameters.
    """
    try:
        check_plain(mapping)
    except ValueError as error:
        raise StackSyntaxError(f"cannot read the stack: {error}") from None
    return bounded(_stack_from(mapping))


def _stack_from(mapping: Any) -> Stack:
    if not isinstance(mapping, Mapping) or set(mapping) != {RULES} or not isinstance(mapping[RULES], list | tuple):
        got = shown(mapping) if isinstance(mapping, Mapping) else type(mapping).__name__
        raise StackSyntaxError(f"a stack is a mapping with the one key 'rules', a list of rules; got {got}")
    return Stack(*(_rule_from(item) for item in mapping[RULES]))


def _rule_from(item: Any) -> Rule:
    if not isinstance(item, Mapping) or len(item) != 1:
        raise StackSyntaxError(f"a rule is a mapping {{name: {{argument: value}}}} with one name; got {shown(item)}")
    ((name, arguments),) = item.items()
    known = {entry.name: entry for entry in rules()}
    if name not in known:
        raise StackSyntaxError(f"unknown rule {shown(name)}{nearest(str(name), known)}")
    if not isinstance(arguments, Mapping):
        wanted = known[name].signature
        raise StackSyntaxError(f"{name}: expected a mapping of arguments, {wanted}; got {shown(arguments)}")
    return make(name, [], {key: _value_from(value) for key, value in arguments.items()})


def _value_from(value: Any) -> Any:
    if isinstance(value, Mapping):
        return _stack_from(value) if set(value) == {RULES} else _rule_from(value)
    return tuple(_value_from(item) for item in value) if isinstance(value, list | tuple) else value


def as_stack(stack: Rule | str | Mapping[str, Any]) -> Stack:
    """A stack from whatever form of it a user has: a stack, one rule, text, ``"@PRESET"``, or a mapping.

    Text from elsewhere than a user, such as a file, goes through `parse` instead: it does not choose what is read.

    Args:
        stack: the stack. Text that begins with ``@`` is a preset's name, or the path of a file ``.yaml``.

    Raises:
        InputError: there is no such preset or file.
        StackSyntaxError: `stack` is something else; the message says what to write.
        GuidestackError: as `parse` and `from_config`.
    """
    if isinstance(stack, str):
        from .presets import read  # which reads mappings with what is above

        return read(stack)
    if isinstance(stack, Rule):
        return stack if isinstance(stack, Stack) else Stack(stack)
    if instead := _instead(plain(stack)):
        raise StackSyntaxError(f"{shown(stack)} is no stack; write {instead}")
    if isinstance(stack, Mapping):
        return from_config(stack)
    raise StackSyntaxError(f"expected a stack, a rule, its text or its mapping; got {type(stack).__name__}")


def _instead(given: Any) -> str:
    """What was probably meant by something that is no stack, as it is written; "" where nobody can tell."""
    known = {entry.name: entry.rule for entry in rules()}
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
    if isinstance(given, Mapping) and len(given) == 1 and set(given) <= set(known):
        ((name, value),) = given.items()
        arguments = value if isinstance(value, Mapping) else {parameters(known[name])[0].name: value}
        return f"{{'rules': [{{{name!r}: {shown(dict(arguments))}}}]}}"
    return ""
