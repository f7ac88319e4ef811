"""Names for metrics, and their text form: ``frechet``, ``concept(top=5)``."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from ...guidance.errors import InputError, RuleError, StackSyntaxError, shown
from ...guidance.fields import parameters
from ...guidance.notation import registry as notation
from ...guidance.notation.text import parse_call
from .. import extractors, references
from ..paths import located
from .base import Metric, PairMetric, RecordMetric, SampleMetric, SetMetric

M = TypeVar("M", bound=type[Metric])
_METRICS: dict[str, type[Metric]] = {}


def register(name: str) -> Callable[[M], M]:
    """Class decorator: give a metric its name. Third parties use it too.

    Args:
        name: a Python identifier that no other metric has.

    Raises:
        InputError: the name is taken or is no identifier, or the class is not a frozen dataclass of one of the kinds
            `SampleMetric`, `PairMetric`, `RecordMetric` and `SetMetric`, has another `better` than ``"up"``,
            ``"down"`` and ``"none"``, or has no docstring, whose first line is its summary.
    """

    def decorate(metric: M) -> M:
        if not name.isidentifier() or name in _METRICS:
            raise InputError(f"a metric's name is an identifier that no other metric has; got {name!r}")
        if not (isinstance(metric, type) and issubclass(metric, SampleMetric | PairMetric | RecordMetric | SetMetric)):
            raise InputError(f"a metric is a class of a kind such as SampleMetric; got {shown(metric)}")
        if not getattr(getattr(metric, "__dataclass_params__", None), "frozen", False):
            raise InputError(
                f"{metric.__name__} must be a frozen dataclass: put @register above @dataclass(frozen=True)"
            )
        if metric.better not in ("up", "down", "none"):
            raise InputError(f"{metric.__name__}: better is 'up', 'down' or 'none'; got {shown(metric.better)}")
        about = metric.__doc__ or ""
        if not about.strip() or about.startswith(f"{metric.__name__}("):  # which a dataclass without one is given
            raise InputError(f"{metric.__name__} has no docstring; its first line is what lists of metrics say of it")
        metric.name = name
        _METRICS[name] = metric
        notation.OTHERS.add(metric.__module__)
        return metric

    return decorate


def metrics() -> dict[str, type[Metric]]:
    """Every metric by name, in alphabetical order."""
    importlib.import_module(__package__)  # whose files register their metrics
    return {name: _METRICS[name] for name in sorted(_METRICS)}


def signature(name: str) -> str:
    """A metric's parameters with their defaults, such as ``concept(by='pixels', top=1)``."""
    return notation.signature(name, _METRICS[name])


def summary(name: str) -> str:
    """The first line of a metric's docstring."""
    return (inspect.getdoc(_METRICS[name]) or "").splitlines()[0]


def parse_metric(text: str) -> Metric:
    """Read a metric such as ``"saturation"`` or ``"kid(degree=3)"``: a name, and literal arguments; never evaluated.

    Raises:
        InputError: it is something else, or the metric refuses a parameter; the message has the nearest valid name.
    """
    try:
        metric = parse_call(text, "metric", metrics())
    except (StackSyntaxError, RuleError) as error:
        raise InputError(str(error)) from error
    for one in parameters(metric):
        value = getattr(metric, one.name)
        if isinstance(one.default, str) and not isinstance(value, str):
            raise InputError(f"{metric.name}: {one.name} is a text in quotes; got {shown(value)}")
    return metric


def metric_located(text: str, folder: Path | None = None) -> str:
    """A metric as it is written, with absolute paths of its reference, of its extractor's files and of its model.

    Raises:
        InputError: it is no metric.
    """
    ways = {"reference": references.located, "extractor": extractors.located, "model": located}
    metric = parse_metric(text)
    named = {name: way(getattr(metric, name), folder) for name, way in ways.items() if vars(metric).get(name)}
    found = dataclasses.replace(metric, **named)  # type: ignore[type-var]
    return text if found == metric else str(found)
