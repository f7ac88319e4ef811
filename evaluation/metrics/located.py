"""A metric of a sweep with absolute paths, so that what is stored of it works from anywhere."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from .. import extractors, references
from ..paths import located
from .registry import parse_metric


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
