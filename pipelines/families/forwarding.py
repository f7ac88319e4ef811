"""Subclasses of users that only forward their call, to which the family record of the base class applies."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Mapping
from typing import Any

HARMLESS = ("torch.no_grad()", "torch.inference_mode()", "override")
"""Decorators that change nothing of what is handed on."""
ABOVE = re.compile(r"super\((\w+, \w+)?\)\.__call__")


def forwards(cls: type, base: type) -> bool:
    """Return whether a call of `cls` is one of `base`: inherited, or overridden by methods that only forward it.

    Args:
        cls: a class.
        base: a class above it, with a ``__call__``.
    """
    overriding = [vars(one)["__call__"] for one in cls.__mro__[: cls.__mro__.index(base)] if "__call__" in vars(one)]
    return all(_hands_on(one, inspect.signature(call_of(base)).parameters) for one in overriding)


def call_of(cls: type) -> Callable[..., Any]:
    """The function behind ``__call__`` of the objects of a class."""
    found: Callable[..., Any] = next(vars(one)["__call__"] for one in cls.__mro__ if "__call__" in vars(one))
    return found


def _hands_on(function: Callable[..., Any], takes: Mapping[str, inspect.Parameter]) -> bool:
    """Return whether a method only returns what the base class returns for the same arguments.

    Args:
        function: the method.
        takes: the parameters of the one above.
    """
    inner = inspect.unwrap(function)
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(inner))).body[0]
    except (OSError, TypeError, SyntaxError):  # there is no source to read, and who knows
        return False
    if not isinstance(tree, ast.FunctionDef) or any(ast.unparse(one) not in HARMLESS for one in tree.decorator_list):
        return False
    body = tree.body[1:] if ast.get_docstring(tree) is not None else tree.body
    call = body[0].value if len(body) == 1 and isinstance(body[0], ast.Return) else None
    if not isinstance(call, ast.Call) or not ABOVE.fullmatch(ast.unparse(call.func)):
        return False
    own = list(inspect.signature(inner).parameters.values())[1:]
    named = [one for one in own if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]
    names, known = [one.name for one in named], list(takes)[1:]
    if any(one.name not in takes or one.default != takes[one.name].default for one in named):
        return False
    placed = sum(not isinstance(one, ast.Starred) for one in call.args)
    spread = [f"*{one.name}" for one in own if one.kind is one.VAR_POSITIONAL]
    if spread and any(one.kind is not one.KEYWORD_ONLY for one in named[placed:]):
        return False  # what is spread would take their places
    by_name = {f"{name}={name}" for name in names[placed:]} | {
        f"**{one.name}" for one in own if one.kind is one.VAR_KEYWORD
    }
    handed = [ast.unparse(one) for one in call.args], {ast.unparse(one) for one in call.keywords}
    return handed == ([*names[:placed], *spread], by_name) and names[:placed] == known[:placed]
