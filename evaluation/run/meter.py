"""Metrics of each image and the features of sets, taken while the images are made: these need not be kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ...guidance.errors import InputError
from ..extractors import full_name, load
from ..metrics import PairMetric, PromptMetric, SampleMetric, parse_metric
from ..spec.prompts import Prompt

PICTURE = (1, 64, 64, 3)  # of noise: metrics are tried on it before anything is made

Features = Mapping[str, tuple[list[str], NDArray[Any]]]


@dataclass(frozen=True)
class Meter:
    """The metrics and the features that are computed of every batch.

    Args:
        metrics: of each image by itself.
        extractors: whose features are kept.
        device: where these run.
    """

    metrics: tuple[SampleMetric, ...]
    extractors: tuple[str, ...]
    device: str | None = None

    @classmethod
    def of(
        cls,
        texts: Sequence[str],
        prompts: Sequence[Prompt],
        baseline: bool,
        images: bool = True,
        device: str | None = None,
    ) -> Meter:
        """The meter for a sweep's metrics, tried on a picture, so that what they need is known to be there.

        Args:
            texts: the metrics.
            prompts: of the sweep.
            baseline: whether it names a cell that others are compared with.
            images: whether it keeps them.
            device: where extractors run; by default the first GPU if there is one.

        Raises:
            InputError: a metric lacks its labels, its baseline, its extractor or a file.
        """
        metrics = [parse_metric(text) for text in texts]
        known = {name for prompt in prompts for name in prompt.labels}
        for metric in metrics:
            if lacking := metric.lacks(known, baseline, images):
                raise InputError(f"the metric {metric} {lacking}")
            metric.named(1)  # which looks for the files of its extractor and reference
        metrics = [metric.inner if isinstance(metric, PromptMetric) else metric for metric in metrics]
        each = tuple(dict.fromkeys(metric for metric in metrics if isinstance(metric, SampleMetric)))
        # Pairs are compared when the baseline's images are there, by other features than those of a whole image.
        needed = (one.extractor for one in metrics if one.extractor and not isinstance(one, PairMetric))
        meter = cls(each, tuple(dict.fromkeys(needed)), device)
        rows = [{"address": "", "prompt": prompts[0].text, **{f"label.{name}": None for name in known}}]
        meter.measured(pa.Table.from_pylist(rows), np.random.default_rng(0).integers(0, 256, PICTURE, np.uint8))
        return meter

    def measured(self, records: pa.Table, pixels: NDArray[np.uint8]) -> tuple[pa.Table, Features]:
        """The records with a column for each metric, and the features by extractor.

        Args:
            records: of the samples.
            pixels: of these, ``(N, H, W, 3)``.
        """
        features = {text: load(text, self.device)(pixels) for text in self.extractors}
        prompts = records.column("prompt").to_pylist()
        for metric in self.metrics:
            labels = {name: _listed(records, f"label.{name}") for name in metric.labels}
            own = features[metric.extractor] if metric.extractor else None
            values = pa.array(metric.measure(pixels, labels, prompts, own), pa.float64(), from_pandas=True)
            records = records.append_column(f"metric.{metric.full_name}", values)
        addresses = records.column("address").to_pylist()
        return records, {full_name(text): (addresses, rows) for text, rows in features.items()}


def _listed(records: pa.Table, name: str) -> list[Any]:
    return records.column(name).to_pylist() if name in records.column_names else [None] * len(records)
