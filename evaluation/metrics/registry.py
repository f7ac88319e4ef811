"""Names for metrics, and their text form: ``frechet``, ``concept(top=5)``."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from ...guidance.errors import InputError, RuleError, StackSyntaxError, shown
from ...guidance.fields import parameters
from ...guidance.notation import registry as notation
from ...guidance.notation.plugins import imported
from ...guidance.notation.text import parse_call
from .. import extractors, references
from ..paths import located
from .base import Metric, PairMetric, PromptMetric, RecordMetric, SampleMetric, SetMetric

GROUP = "guidestack.metrics"
"""The group of entry points by which a package brings metrics."""
KNOWN = {
    "fd_dinov2": "transformers",
    "pickscore": "transformers",
    "image_reward": "image-reward",
    "hpsv2": "hpsv2",
    "hpsv3": "hpsv3",
    "vqascore": "t2v-metrics",
    "dreamsim": "dreamsim",
    "lpips": "lpips",
    "pyiqa": "pyiqa",
}
"""Metrics that are asked for and that guidestack does not bring, by name, with the package that computes them."""

KINDS = (SampleMetric, PairMetric, RecordMetric, PromptMetric, SetMetric)
M = TypeVar("M", bound=type[Metric])
_METRICS: dict[str, type[Metric]] = {}


def register(name: str) -> Callable[[M], M]:
    """Class decorator: give a metric its name. Third parties use it too.

    Args:
        name: a Python identifier that no other metric has.

    Raises:
        InputError: the name is taken or is no identifier, or the class is not a frozen dataclass of one of the kinds
            `SampleMetric`, `PairMetric`, `RecordMetric`, `PromptMetric` and `SetMetric`, has another `better` than
            ``"up"``, ``"down"`` and ``"none"``, or has no docstring, whose first line is its summary.
    """

    def decorate(metric: M) -> M:
        if not name.isidentifier() or name in _METRICS:
            raise InputError(f"a metric's name is an identifier that no other metric has; got {name!r}")
        if not (isinstance(metric, type) and issubclass(metric, KINDS)):
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


@functools.cache
def plugins() -> dict[str, str]:
    """Import the metrics of installed packages, once a process; one that cannot be imported is a warning.

    Returns:
        Those that cannot, by the name of their entry point, with why.
    """
    return imported(GROUP, "metrics", _METRICS)


def metrics() -> dict[str, type[Metric]]:
    """Every metric by name, in alphabetical order; those of installed packages are among them."""
    importlib.import_module(__package__)  # whose files register their metrics
    plugins()
    return {name: _METRICS[name] for name in sorted(_METRICS)}


def signature(name: str) -> str:
    """A metric's parameters with their defaults, such as ``concept(by='pixels', top=1)``."""
    return notation.signature(name, _METRICS[name])


def summary(name: str) -> str:
    """The first line of a metric's docstring."""
    return (inspect.getdoc(_METRICS[name]) or "").splitlines()[0]


def parse_metric(text: str) -> Metric:
    """Read a metric such as ``"saturation"`` or ``"kid(degree=3)"``: a name, and literal arguments; never evaluated.

    Args:
        text: the metric's text form.

    Raises:
        InputError: the text is something else, or the metric refuses a parameter; the message has the nearest name.
    """
    known = metrics()
    called = re.match(r"\s*(\w+)", text) if isinstance(text, str) else None
    if called and (name := called[1]) not in known:
        if name in plugins():
            raise InputError(f"the metric {name} of an installed package cannot be used: {plugins()[name]}")
        if name in KNOWN:
            raise InputError(
                f"no metric {name!r} is installed; pip install {KNOWN[name]}, and register a metric that calls it "
                "(docs/metrics.md, New metrics, shows two)"
            )
    try:
        metric = parse_call(text, "metric", known)
    except StackSyntaxError as error:
        own = called is not None and called[1] not in known
        raise InputError(f"{error}{'; a metric of yours needs --rules FILE.py' if own else ''}") from error
    except RuleError as error:
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
