"""What is kept of a batch that is made: a row a sample, images, features, traces."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from ...guidance.version import __version__
from ...pipelines.models.files import contents
from ...pipelines.models.generator import Made
from ...pipelines.models.recipe import MOST_TOGETHER, Recipe
from ..effective_scale import gathered
from ..spec.cells import Addresses
from ..spec.sweep import Sweep
from ..store.folder import COLUMNS, IMAGES, column_type
from .batches import Batch, Sample
from .writer import Finished

if TYPE_CHECKING:
    from .meter import Meter


@dataclass(frozen=True)
class Keeper:
    """Turns batches that are made into what is written.

    Args:
        sweep: what to keep.
        addresses: of the model.
        identity: what identifies the model.
        versions: of the libraries that make the images, and on what device.
        meter: what is measured of them; None for nothing.
    """

    sweep: Sweep
    addresses: Addresses
    identity: Mapping[str, str]
    versions: Mapping[str, str]
    meter: Meter | None = None

    def kept(self, batch: Batch, made: Made, existing: Collection[str]) -> Finished:
        """What is written of a batch: of its samples those that are not in `existing`, and not lost."""
        existing = {*existing, *lost_of(batch, made)}
        rows: list[dict[str, Any]] = []
        images: dict[str, Callable[[], bytes]] = {}
        measured = gathered(made.report)
        traces: dict[str, dict[str, NDArray[np.float64]]] = {}
        for place, sample in enumerate(batch.samples):
            if sample.address in existing:
                continue
            row = self._row(batch, place, made) | {
                "effective_scale": _number(measured.effective_scale[place]),
                "across": _number(measured.across[place]),
                "guided_steps": int(measured.guided_steps[place]),
            }
            if self.sweep.images != "none":
                row["image"] = f"{IMAGES}/{sample.address[:2]}/{sample.address}.{self.sweep.images}"
                recipe = self._recipe(batch, sample)
                images[row["image"]] = functools.partial(contents, made.images[place], self.sweep.images, recipe)
            if self.sweep.traces:
                traces[sample.address] = measured.sample(place)
            rows.append(row)
        table = _table(rows)
        features: Mapping[str, Any] = {}
        if self.meter is not None:
            kept = [place for place, sample in enumerate(batch.samples) if sample.address not in existing]
            table, features = self.meter.measured(table, pixels([made.images[place] for place in kept]))
        return Finished(table, images, features, traces)

    def _recipe(self, batch: Batch, sample: Sample) -> dict[str, Any]:
        """What `guidestack generate --like` reads out of an image."""
        cell, prompt = batch.cell, sample.prompt
        return Recipe(
            prompt=prompt.text,
            negative=prompt.negative,
            extra=prompt.extra,
            guidance=cell.stack,
            sampler=cell.sampler,
            steps=cell.steps,
            seed=sample.seed,
            size=cell.size,
            dtype=cell.dtype,
            batch=min(len(batch.samples), MOST_TOGETHER),
            model=self.identity,
            versions=self.versions,
        ).written()

    def _row(self, batch: Batch, place: int, made: Made) -> dict[str, Any]:
        cell, sample, report = batch.cell, batch.samples[place], made.report
        prompt = sample.prompt
        width, height = made.images[place].size
        row: dict[str, Any] = {
            "address": sample.address,
            "cell": self.addresses.cell(cell),
            "prompt": prompt.text,
            "negative": prompt.negative,
            "extra": prompt.extra,
            "prompt_index": sample.place,
            "seed": sample.seed,
            "stack": cell.stack,
            "sampler": cell.sampler,
            "steps": cell.steps,
            "height": height,
            "width": width,
            "dtype": cell.dtype,
            "model": self.identity["name"],
            "fingerprint": self.identity.get("fingerprint"),
            "evaluations": report.evaluations[place],
            "calls": report.calls,
            "rows": report.rows,
            "batch": len(batch.samples),
            "seconds": made.seconds / len(batch.samples),
            "versions": json.dumps({"guidestack": __version__, **self.versions}, sort_keys=True),
            "made": datetime.now(UTC),
        }
        row |= {f"axis.{name}": value for name, value in cell.axes}
        return row | {f"label.{name}": value for name, value in prompt.labels.items()}


def _table(rows: Sequence[dict[str, Any]]) -> pa.Table:
    names = [*COLUMNS, *sorted({name for row in rows for name in row} - set(COLUMNS))]
    columns = {name: pa.array([row.get(name) for row in rows], column_type(name)) for name in names}
    return pa.table(columns)


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def lost_of(batch: Batch, made: Made) -> set[str]:
    """The addresses of the samples of a batch that are NaN or Inf."""
    return {sample.address for place, sample in enumerate(batch.samples) if place not in made.images}


def pixels(images: Sequence[Image.Image]) -> NDArray[np.uint8]:
    """Images as an array, shape ``(B, H, W, 3)``."""
    return np.stack([np.asarray(image.convert("RGB")) for image in images])
