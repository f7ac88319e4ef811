"""What is kept of a batch that is made: a row a sample, images, features, traces."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from ...guidance.bounds import MOST_TOGETHER
from ...guidance.version import __version__
from ...pipelines.models.files import contents
from ...pipelines.models.generator import Generator, Made
from ...pipelines.models.recipe import Recipe
from ..effective_scale import gathered
from ..spec.cells import Addresses
from ..spec.sweep import Sweep
from ..store.folder import COLUMNS, IMAGES, column_type
from .batches import Batch
from .writer import Finished

if TYPE_CHECKING:
    from .meter import Features, Meter

Row = dict[str, Any]


@dataclass(frozen=True)
class Keeper:
    """Turns batches that are made into what is written.

    Args:
        sweep: what to keep.
        addresses: of the model.
        generator: the model that makes them.
        meter: what is measured of them; None for nothing.
    """

    sweep: Sweep
    addresses: Addresses
    generator: Generator
    meter: Meter | None

    def kept(self, batch: Batch, made: Made, existing: Collection[str]) -> Finished:
        """What is written of a batch: of its samples those that are not in `existing`, and not lost."""
        missing = [place for place in sorted(made.images) if batch.samples[place].address not in existing]
        kind, measured = self.sweep.images, gathered(made.report)
        rows = []
        for place in missing:
            scales = {name: getattr(measured, name)[place] for name in ("effective_scale", "across", "ga_scale")}
            row = self._row(batch, place, made) | scales | {"guided_steps": int(measured.guided_steps[place])}
            row["image"] = f"{IMAGES}/{row['address'][:2]}/{row['address']}.{kind}" if kind != "none" else None
            rows.append(row)
        images: dict[str, Callable[[], bytes]] = {
            row["image"]: functools.partial(contents, made.images[place], kind, self._recipe(batch, row))
            for row, place in zip(rows, missing, strict=True)
            if kind != "none"
        }
        traces = {row["address"]: measured.sample(place) for row, place in zip(rows, missing, strict=True)}
        names = [*COLUMNS, *sorted({name for row in rows for name in row} - set(COLUMNS))]
        columns = {
            name: pa.array([row.get(name) for row in rows], column_type(name), from_pandas=True) for name in names
        }
        table = pa.table(columns)
        features: Features = {}
        if self.meter is not None:
            pixels = np.stack([np.asarray(made.images[place].convert("RGB")) for place in missing])
            table, features = self.meter.measured(table, pixels)
        return Finished(table, images, features, traces if self.sweep.traces else {})

    def _recipe(self, batch: Batch, row: Row) -> dict[str, Any]:
        """What `guidestack generate --like` reads out of an image."""
        same = ("prompt", "negative", "extra", "sampler", "steps", "seed", "dtype")
        return Recipe(
            **{name: row[name] for name in same},
            guidance=batch.cell.stack,
            size=batch.cell.size,
            batch=min(len(batch.samples) * batch.cell.parsed.per_image, MOST_TOGETHER),
            model=self.generator.identity,
            versions=self.generator.versions,
            networks=self.generator.networks_of(batch.cell.parsed),
            pictures=self.generator.pictures_of(batch.cell.parsed),
        ).as_json()

    def _row(self, batch: Batch, place: int, made: Made) -> Row:
        cell, sample, report = batch.cell, batch.samples[place], made.report
        prompt = sample.prompt
        row: Row = {
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
            "height": made.images[place].height,
            "width": made.images[place].width,
            "dtype": cell.dtype,
            "model": self.generator.identity["name"],
            "fingerprint": self.generator.identity.get("fingerprint"),
            "evaluations": report.evaluations[place],
            "calls": report.calls,
            "rows": report.rows,
            "batch": len(batch.samples),
            "seconds": made.seconds / len(batch.samples),
            "versions": json.dumps({"guidestack": __version__, **self.generator.versions}, sort_keys=True),
            "made": datetime.now(UTC),
        }
        row |= {f"axis.{name}": value for name, value in cell.axes}
        return row | {f"label.{name}": value for name, value in prompt.labels.items()}
