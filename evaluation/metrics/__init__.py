"""Metrics of generated images: `parse_metric` reads one, `metrics` lists them.

One metric or family a file; see `base` for the kinds, and docs/metrics.md for definitions, names and sizes.
"""

from . import clip, colour, diversity, frechet, kid, neighbours, recognition, recorded, similarity, worst  # noqa: F401  # registers
from .base import (
    Metric,
    PairMetric,
    PromptMetric,
    RecordMetric,
    SampleMetric,
    Samples,
    SetMetric,
    Statistic,
    TooFewError,
)
from .registry import metrics, parse_metric, register, signature, summary

__all__ = [
    "Metric",
    "PairMetric",
    "PromptMetric",
    "RecordMetric",
    "SampleMetric",
    "Samples",
    "SetMetric",
    "Statistic",
    "TooFewError",
    "metrics",
    "parse_metric",
    "register",
    "signature",
    "summary",
]
