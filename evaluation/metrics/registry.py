"""Names for metrics, and their text form: ``frechet``, ``concept(top=5)``."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from ...guidance.errors import InputError, RuleError, nearest, shown
from ...guidance.rule import literal
from ..values import check_plain
from .base import Metric, parameters

M = TypeVar("M", bound=type[Metric])
_METRICS: dict[str, type[Metric]] = {}
MAX_TEXT = 2_000  # characters


def register(name: str) -> Callable[[M], M]:
    """Class decorator: give a metric its name. Third parties use it too.

    Args:
        name: a Python identifier that no other metric has.

    Raises:
        ValueError: the name is taken or is no identifier, or the class is not a frozen dataclass.
    """

    def decorate(metric: M) -> M:
        if not name.isidentifier() or name in _METRICS:
            raise ValueError(f"a metric's name is an identifier that no other metric has; got {name!r}")
        if not getattr(getattr(metric, "__dataclass_params__", None), "frozen", False):
            raise ValueError(
                f"{metric.__name__} must be a frozen dataclass: put @register above @dataclass(frozen=True)"
            )
        metric.name = name
        _METRICS[name] = metric
        return metric

    return decorate


def metrics() -> dict[str, type[Metric]]:
    """Every metric by name, in alphabetical order."""
    importlib.import_module(__package__)  # whose files register their metrics
    return {name: _METRICS[name] for name in sorted(_METRICS)}


def signature(name: str) -> str:
    """A metric's parameters with their defaults, such as ``concept(by='pixels', top=1)``."""
    written = [f"{one.name}={literal(one.default)}" if _has(one) else one.name for one in parameters(_METRICS[name])]
    return f"{name}({', '.join(written)})"


def summary(name: str) -> str:
    """The first line of a metric's docstring."""
    return (inspect.getdoc(_METRICS[name]) or "").splitlines()[0]


def parse_metric(text: str) -> Metric:
    """Read a metric such as ``"saturation"`` or ``"kid(degree=3)"``: a name, and literal arguments; never evaluated.

    Raises:
        InputError: it is something else, or the metric refuses a parameter; the message has the nearest valid name.
    """
    if not isinstance(text, str) or not text.strip() or len(text) > MAX_TEXT:
        raise InputError(f"a metric is a text such as 'saturation' or 'concept(top=5)'; got {text!r:.80}")
    try:
        node = ast.parse(" ".join(text.split()), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise InputError(f"cannot read the metric {shown(text)}: {getattr(error, 'msg', None) or error}") from error
    args: list[ast.expr] = []
    keywords: list[ast.keyword] = []
    match node:
        case ast.Name(id=name):
            pass
        case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords):
            pass
        case _:
            raise InputError(f"a metric is a name with literal arguments, such as 'concept(top=5)'; got {shown(text)}")
    known = metrics()
    if name not in known:
        raise InputError(f"unknown metric {shown(name)}{nearest(name[:60], known)}")
    return _made(known[name], text, args, keywords)


def _made(metric: type[Metric], text: str, args: list[ast.expr], keywords: list[ast.keyword]) -> Metric:
    name, names = metric.name, [one.name for one in parameters(metric)]
    if len(args) > len(names):
        raise InputError(f"{name} takes {len(names)} arguments at most; got {shown(text)}: {signature(name)}")
    given: dict[str, Any] = {}
    for key, node in [*zip(names, args, strict=False), *((one.arg or "**", one.value) for one in keywords)]:
        if key not in names:
            raise InputError(f"{name} has no argument {shown(key)}{nearest(key[:60], names)}")
        if key in given:
            raise InputError(f"{name} got {key!r} twice")
        try:
            given[key] = ast.literal_eval(node)
        except (ValueError, TypeError, RecursionError, MemoryError):
            given[key] = node
        if not isinstance(given[key], str | int | float):
            written = ast.get_source_segment(" ".join(text.split()), node)
            raise InputError(f"{name}: {key} is a number or a text in quotes; got {shown(written)}")
        check_plain(given[key], f"{name}: {key}")
    for one in parameters(metric):
        if isinstance(one.default, str) and not isinstance(given.get(one.name, ""), str):
            raise InputError(f"{name}: {one.name} is a text in quotes; got {shown(given[one.name])}")
        if one.name not in given and not _has(one):
            raise InputError(f"{name} needs {one.name!r}: {signature(name)}")
    try:
        return metric(**given)
    except RuleError as error:  # how the checks of parameters name what they find
        raise InputError(str(error)) from None


def _has(field: Any) -> bool:
    return field.default is not dataclasses.MISSING
