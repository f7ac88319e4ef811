"""The mapping form of a stack, for YAML and JSON: ``{"rules": [{"cfg": {"scale": 4}}]}``. Strict both ways."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import StackSyntaxError, nearest, shown
from ..query import Query
from ..reading import check_plain
from ..rule import Rule, Stack, given
from .registry import RULES, entry_of, find, make, rules
from .text import bounded


def to_config(rule: Rule) -> dict[str, Any]:
    """Return a rule or a stack as the mapping that `from_config` reads back: plain values, ready for YAML or JSON.

    Args:
        rule: a rule or a stack, of registered rules.

    Raises:
        RuleError: a rule is not registered.

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
    entry = find(name)
    if entry is None:
        known = [one.name for one in rules()]
        raise StackSyntaxError(f"unknown rule {shown(name)}{nearest(str(name), known)}")
    if not isinstance(arguments, Mapping):
        wanted = entry.signature
        raise StackSyntaxError(f"{name}: expected a mapping of arguments, {wanted}; got {shown(arguments)}")
    return make(name, [], {key: _value_from(value) for key, value in arguments.items()})


def _value_from(value: Any) -> Any:
    if isinstance(value, Mapping):
        return _stack_from(value) if set(value) == {RULES} else _rule_from(value)
    return tuple(_value_from(item) for item in value) if isinstance(value, list | tuple) else value
