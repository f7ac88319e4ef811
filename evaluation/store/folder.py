"""A run folder: records, images, features and traces of a sweep's samples, each by its address."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from ...guidance.errors import InputError, shown
from ...pipelines.models.files import decoded
from ..values import check_plain
from . import shards
from .location import PATIENCE, Location
from .summary import summary

if TYPE_CHECKING:
    from ..spec.sweep import Sweep

SWEEP, CELLS, RECORDS, METRICS = "sweep.yaml", "cells.json", "records.parquet", "metrics.parquet"
VALUES = "values.parquet"
PARTS, IMAGES, FEATURES, TRACES = "parts", "images", "features", "traces"

COLUMNS: dict[str, pa.DataType] = {
    "address": pa.string(),
    "cell": pa.string(),
    "prompt": pa.string(),
    "negative": pa.string(),
    "extra": pa.string(),
    "prompt_index": pa.int64(),
    "seed": pa.int64(),
    "stack": pa.string(),
    "sampler": pa.string(),
    "steps": pa.int64(),
    "height": pa.int64(),
    "width": pa.int64(),
    "dtype": pa.string(),
    "model": pa.string(),
    "fingerprint": pa.string(),
    "evaluations": pa.int64(),
    "calls": pa.int64(),
    "rows": pa.int64(),
    "batch": pa.int64(),
    "seconds": pa.float64(),
    "effective_scale": pa.float64(),
    "across": pa.float64(),
    "ga_scale": pa.float64(),
    "guided_steps": pa.int64(),
    "image": pa.string(),
    "versions": pa.string(),
    "made": pa.timestamp("us", tz="UTC"),
}
"""The columns that every record has. Beside them: ``axis.NAME``, ``label.NAME`` (text), ``metric.NAME`` (float64)."""
SCHEMA = pa.schema(
    {
        "cell": pa.string(),
        "metric": pa.string(),
        "text": pa.string(),
        "value": pa.float64(),
        "low": pa.float64(),
        "high": pa.float64(),
        "level": pa.float64(),
        "samples": pa.int64(),
        "prompts": pa.int64(),
        "better": pa.string(),
        "note": pa.string(),
    }
)
"""The columns of the metrics: ``metric`` is the full name, ``text`` what `parse_metric` reads; value and interval are
null where there is none."""
EACH = pa.schema(
    {
        "address": pa.string(),
        "cell": pa.string(),
        "metric": pa.string(),
        "text": pa.string(),
        "value": pa.float64(),
        "baseline": pa.string(),
    }
)
"""The columns of the metrics of single images, a row for each that has a value; ``baseline`` is the address of the
image that it was compared with, null for metrics that compare with none."""
ATTEMPTS = 10  # at a list of files that changes while it is read
PREFIXES: dict[str, pa.DataType] = {"axis.": pa.string(), "label.": pa.string(), "metric.": pa.float64()}


def column_type(name: str) -> pa.DataType:
    """The type of a column; null for one that this version does not know."""
    for prefix, kind in PREFIXES.items():
        if name.startswith(prefix):
            return kind
    return COLUMNS.get(name, pa.null())


class RunFolder:
    """A run folder: what a sweep writes, and metrics and reports read. Tables are pyarrow's: ``.to_pandas()``.

    Args:
        location: a path, or an fsspec address.
        patience: seconds for which an operation that fails is tried again.

    Raises:
        InputError: the location cannot be used.
    """

    def __init__(self, location: str | Path, patience: float = PATIENCE) -> None:
        self.location = Location(location, patience)

    def __str__(self) -> str:
        return str(self.location)

    # --- reading ---------------------------------------------------------------------------------------------------

    def sweep(self) -> Sweep:
        """Read the sweep of this folder, with nothing left to a default.

        Raises:
            InputError: there is none, or it cannot be read.
        """
        try:
            return self.resolved(SWEEP)
        except FileNotFoundError:
            raise InputError(f"{self} is no run folder: it has no {SWEEP}; `guidestack evaluate` makes one") from None

    def resolved(self, name: str) -> Sweep:
        """Read a sweep from a file of this folder.

        Raises:
            FileNotFoundError: there is no such file.
            InputError: it cannot be read.
        """
        from ..spec.sweep import parse_sweep

        data = self.location.read(name)
        try:
            return parse_sweep(data, f"{self}/{name}", self.location.read, self.location.folder)
        except InputError as error:
            advice = (
                "if it names a metric of yours, import its file by --rules FILE.py; if the file is damaged, remove it, "
                "and run the sweep again: it is written anew"
            )
            raise InputError(f"{error}; {advice}") from error

    def cells(self) -> dict[str, Any]:
        """Read the sweep's cells, in its order, as plain values.

        ``cells`` is a list of mappings with ``cell`` (the hash that records have), ``stack``, ``sampler``, ``steps``,
        ``size``, ``dtype``, ``batch``, ``template`` and ``axes``; ``baseline`` is the hash of the cell that others are
        compared with, or None; ``samples`` is how many the whole sweep has; ``name`` and ``model`` say the model.

        Raises:
            InputError: there is no such account, or it cannot be read.
        """
        try:
            told = json.loads(self.location.read(CELLS))
            check_plain(told, CELLS)
        except FileNotFoundError:
            raise InputError(f"{self} is no run folder: it has no {CELLS}; `guidestack evaluate` makes one") from None
        except (ValueError, RecursionError, InputError) as error:
            raise damaged(self, CELLS, error) from error
        if reason := _wrong(told):
            raise damaged(self, CELLS, reason)
        return dict(told)

    def record_files(self) -> list[str]:
        """List the files with records, relative to the folder: the merged one first, then the parts."""
        merged = [RECORDS] if self.location.exists(RECORDS) else []
        return merged + [f"{PARTS}/{name}" for name in self.location.names(PARTS) if name.endswith(".parquet")]

    def records(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Read all records, one row a sample, sorted by address: the merged ones, and the parts not merged yet.

        Args:
            columns: names; all by default. What no file has reads as null.

        Raises:
            InputError: a file is damaged.
        """
        wanted = None if columns is None else list(dict.fromkeys(["address", *columns]))
        try:
            table = joined(list(self._all_records(wanted)))
        except pa.ArrowException as error:  # columns that this version does not know
            raise damaged(self, f"a file of {PARTS} or {RECORDS}", error) from error
        names = list(COLUMNS) if columns is None else [str(name) for name in columns]
        for name in dict.fromkeys(["address", *names]):
            if name not in table.column_names:
                table = table.append_column(name, pa.nulls(len(table), column_type(name)))
        table = unique(table)
        return table if columns is None else table.select(names)

    def read_records(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Read one of `record_files`, with those of `columns` that it has.

        Raises:
            FileNotFoundError: it is not there.
            InputError: it is damaged.
        """
        try:
            with self.location.open(name) as file:
                parquet = pq.ParquetFile(file)
                has = parquet.schema_arrow.names
                table = parquet.read(None if columns is None else [one for one in columns if one in has])
            return checked(table)
        except FileNotFoundError:
            raise
        except (pa.ArrowException, OSError, ValueError) as error:
            raise damaged(self, name, error) from error

    def values(self) -> pa.Table:
        """Read the metrics of single images as `guidestack evaluate` wrote them last; the columns are `EACH`.

        Raises:
            InputError: nothing was measured yet, or the file is damaged.
        """
        return self._measured(VALUES, EACH)

    def metrics(self) -> pa.Table:
        """Read the metrics of each cell with their 95% intervals, as `guidestack evaluate` wrote them last.

        Columns: ``cell``, ``metric`` (the full name), ``text`` (as in the sweep), ``value``, ``low``, ``high``,
        ``level``, ``samples``, ``prompts``, ``better`` and ``note``.

        Raises:
            InputError: nothing was measured yet, or the file is damaged.
        """
        return self._measured(METRICS, SCHEMA)

    def _measured(self, name: str, schema: pa.Schema) -> pa.Table:
        try:
            with self.location.open(name) as file:
                table = pq.read_table(file).select(schema.names).cast(schema)
            if any(table.column(one).null_count for one in ("cell", "metric", "text")):
                raise ValueError("a row has no cell or no metric")
            return table
        except FileNotFoundError:
            raise InputError(
                f"{self} has no {name}; `guidestack evaluate` writes it when a sweep has metrics and is complete"
            ) from None
        except (pa.ArrowException, OSError, ValueError, KeyError) as error:
            raise damaged(self, name, error) from error

    def summary(self) -> str:
        """Return the metrics as a text: a line for each cell, a column for each metric, then full names and notes.

        Raises:
            InputError: nothing was measured yet, or a file is damaged.
        """
        return summary(self.metrics(), self.cells())

    def addresses(self) -> set[str]:
        """Return the addresses of all samples that have a record; reads that one column and no image."""
        found: set[str] = set()
        for table in self._all_records(["address"]):
            found.update(table.column("address").to_pylist())
        return found

    def _all_records(self, columns: Sequence[str] | None) -> Iterator[pa.Table]:
        """Every file's records. While a run goes on, parts turn into larger ones: what is gone is looked for again."""
        seen: set[str] = set()
        for _ in range(ATTEMPTS):
            gone = False
            for name in self.record_files():
                if name in seen:
                    continue
                try:
                    yield self.read_records(name, columns)
                    seen.add(name)
                except FileNotFoundError:
                    gone = True
            if not gone:
                return
            seen.discard(RECORDS)  # it may be that the parts went into it

    def image(self, path: str) -> Image.Image:
        """Open the image with this path, the `image` of its record.

        Raises:
            InputError: it is not there, leads out of the folder, or is no image.
        """
        try:
            data = self.location.read(path)
        except FileNotFoundError:
            raise InputError(f"no image {path} in {self}") from None
        return decoded(data, f"{shown(path)} of {self}", ("PNG", "WEBP")).convert("RGB")

    def features(self, extractor: str) -> tuple[list[str], NDArray[Any]]:
        """Read the addresses of all samples that have features, and a row for each, shape ``(N, D)``."""
        found: dict[str, NDArray[Any]] = {}
        for addresses, rows in self.feature_shards(extractor):
            for address, row in zip(addresses, rows, strict=True):
                found.setdefault(address, row)
        rows = np.stack(list(found.values())) if found else np.zeros((0, 0), np.float32)
        return list(found), rows

    def feature_shards(self, extractor: str) -> Iterator[tuple[list[str], NDArray[Any]]]:
        """Iterate over addresses and features file by file, in bounded memory; an address may come twice."""
        width = None
        for shard in shards.read(self.location, feature_folder(extractor)):
            rows = shard.arrays.get("features", np.zeros(0))
            if rows.ndim != 2 or rows.dtype.kind != "f" or width not in (None, rows.shape[1]):
                raise damaged(self, feature_folder(extractor), "features that are no rows of equally many numbers")
            width = rows.shape[1]
            yield shard.addresses, rows

    def traces(self, addresses: Iterable[str]) -> dict[str, dict[str, NDArray[np.float64]]]:
        """Read the traces of those samples that have any: by address and name, one number a step, ``(steps,)``."""
        wanted = set(addresses)
        found: dict[str, dict[str, NDArray[np.float64]]] = {}
        for shard in shards.read(self.location, TRACES):
            steps_of = shard.arrays.get("steps", np.zeros(0))
            others = [rows for name, rows in shard.arrays.items() if name != "steps"]
            if (steps_of.ndim, steps_of.dtype.kind) != (1, "i") or any(
                (rows.ndim, rows.dtype.kind) != (2, "f") for rows in others
            ):
                raise damaged(self, TRACES, "traces that are no rows of numbers with their lengths")
            for row, address in enumerate(shard.addresses):
                if address in wanted and address not in found:
                    steps = int(steps_of[row])
                    each = {name: rows[row, :steps] for name, rows in shard.arrays.items() if name != "steps"}
                    found[address] = {name: row for name, row in each.items() if not np.isnan(row).all()}
        return found

    # --- writing ---------------------------------------------------------------------------------------------------

    def write_bytes(self, relative: str, data: bytes) -> None:
        """Write a file of the folder atomically: an error leaves it as it was before.

        Raises:
            InputError: it cannot be written, or would lie outside of the folder.
        """
        self.location.write(relative, data)

    def add_records(self, table: pa.Table) -> str:
        """Append records as a part of their own; its name follows from their addresses. Returns it."""
        name = f"{PARTS}/{shards.digest(table.column('address').to_pylist())}.parquet"
        self.write_bytes(name, parquet_bytes(table))
        return name

    def merge(self) -> int:
        """Merge the parts into one file of records, sorted by address and each address once; the caller holds the lock.

        It may be stopped at any moment and run again: a part is removed when the file that has its rows is in place,
        and rows that come twice are the same. The records are held in memory: a million need about 1.3 GB.

        Returns:
            The number of records.

        Raises:
            InputError: a part is damaged, or the file cannot be written.
        """
        self.location.clear(PARTS)  # of a writer that was killed while it joined parts
        parts = [name for name in self.record_files() if name != RECORDS]
        if not parts:
            return len(self.addresses())
        table = self.records()
        others = sorted(set(table.column_names) - set(COLUMNS))
        self.write_bytes(RECORDS, parquet_bytes(table.select([*COLUMNS, *others])))
        for name in parts:
            self.location.remove(name)
        return len(table)

    def add_features(self, extractor: str, addresses: Sequence[str], rows: NDArray[Any]) -> str:
        """Append features, a row for each address, shape ``(N, D)``; returns the file's name."""
        shard = shards.Shard(list(addresses), {"features": rows})
        return shards.add(self.location, feature_folder(extractor), shard)

    def add_traces(self, traces: Mapping[str, Mapping[str, NDArray[Any]]]) -> str:
        """Append traces by address and name, a number for each step; returns the file's name."""
        each = []
        for address, one in traces.items():
            steps = np.array([max(map(len, one.values()), default=0)], np.int32)
            each.append(shards.Shard([address], {"steps": steps, **{name: row[None] for name, row in one.items()}}))
        return shards.add(self.location, TRACES, shards.joined(each))


def feature_folder(extractor: str) -> str:
    """The folder of the features of an extractor, whatever characters its name has."""
    return f"{FEATURES}/{shards.filename(extractor)}"


def parquet_bytes(table: pa.Table) -> bytes:
    """A table as the contents of a Parquet file."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue().to_pybytes()  # type: ignore[no-any-return]


def joined(tables: Sequence[pa.Table]) -> pa.Table:
    """Tables one below the other: the union of their columns, null where one has none."""
    if not tables:
        return pa.table({"address": pa.array([], pa.string())})
    return pa.concat_tables(tables, promote_options="permissive")


def checked(table: pa.Table) -> pa.Table:
    """Records as they are read, each known column in its type; a number that is not finite is none.

    Raises:
        ValueError: a column that has another kind of values, or no addresses.
        pa.ArrowException: likewise.
    """
    if len(set(table.column_names)) < len(table.column_names):
        raise ValueError("a column comes twice")
    if "address" not in table.column_names:
        raise ValueError("no column 'address'")
    for place, name in enumerate(table.column_names):
        kind, column = column_type(name), table.column(name)
        if pa.types.is_null(kind):
            continue
        if column.type != kind:
            try:
                column = column.cast(kind)
            except pa.ArrowException as error:
                raise ValueError(f"the column {name!r} has values that are no {kind}: {error}") from error
        if pa.types.is_floating(kind):
            column = pc.if_else(pc.is_finite(column), column, pa.scalar(None, kind))
        table = table.set_column(place, name, column)
    right = pc.match_substring_regex(table.column("address"), "^([0-9a-f]{2}){16}$")
    if len(table) and (right.null_count or not pc.all(right).as_py()):
        raise ValueError("the column 'address' has values that are no addresses of samples")
    return table


def _wrong(told: Any) -> str:
    """What is wrong with the contents of ``cells.json``; "" for nothing."""
    if not isinstance(told, dict) or not isinstance(told.get("cells"), list):
        return "no list of cells"
    for place, cell in enumerate(told["cells"], 1):
        given = cell if isinstance(cell, dict) else {}
        size, axes = given.get("size", ""), given.get("axes", "")
        right = {name: isinstance(given.get(name), str) for name in ("cell", "stack", "sampler", "dtype", "template")}
        right["steps"] = type(given.get("steps")) is int
        right["size"] = size is None or (isinstance(size, list) and [type(side) for side in size] == [int, int])
        right["axes"] = isinstance(axes, dict) and all(isinstance(one, str | None) for one in axes.values())
        if wrong := [name for name in right if not right[name]]:
            return f"cell {place} has no {wrong[0]}, or another kind of value there"
    known = {cell["cell"] for cell in told["cells"]}
    if len(known) < len(told["cells"]):
        return "a cell comes twice"
    if any(told.get(name) is not None and not isinstance(told[name], str) for name in ("name", "model", "baseline")):
        return "name, model and baseline are texts"
    if told.get("baseline") is not None and told["baseline"] not in known:
        return "its baseline is no cell"
    return "" if type(told.get("samples", 0)) is int else "samples is no number"


def unique(table: pa.Table) -> pa.Table:
    """The rows sorted by address, the first of each address."""
    order = pc.sort_indices(table, sort_keys=[("address", "ascending")])
    table = table.take(order)
    addresses = table.column("address").combine_chunks().to_numpy(zero_copy_only=False)
    first = np.ones(len(addresses), bool)
    first[1:] = addresses[1:] != addresses[:-1]
    return table if first.all() else table.filter(pa.array(first))


def damaged(folder: object, name: str, reason: object) -> InputError:
    """The error for a file that cannot be read."""
    return InputError(
        f"{name} of {folder} is damaged: {' '.join(str(reason).split())[:200]}; remove it, and run the sweep again: "
        "what it held is made anew"
    )
