"""From many small parts to one file of records, sorted and without doubles, in bounded memory."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ...guidance.errors import InputError
from .folder import COLUMNS, PARTS, RECORDS, RunFolder, checked, damaged, unique

ROWS = 65_536  # of a bucket, about: what is held in memory at once
BUCKETS = 256  # at most: two hexadecimal digits
PREFIX = ".merge-"


def merge(run: RunFolder) -> int:
    """Merge the parts into ``records.parquet``; returns its rows.

    It may be stopped at any moment and run again: parts are removed when the file that has their rows is in place, and
    rows that come twice are the same. Whoever calls it holds the lock.

    Raises:
        InputError: a part is damaged, or the disk is full.
    """
    run.location.clear(PARTS)  # what a writer left that was killed while it made parts into a larger one
    files = run.record_files()
    parts = [name for name in files if name != RECORDS]
    if not parts:
        return _rows(run, RECORDS) if files else 0
    schema = _schema(run, files)
    total = sum(_rows(run, name) for name in files)
    try:
        with _scratch(run) as scratch:
            written = _write(run, files, schema, total, scratch)
            run.location.put(RECORDS, scratch / RECORDS)
    except OSError as error:  # of this machine's disk; the location says its own
        reason = error.strerror or str(error)
        raise InputError(
            f"cannot merge {run}: {reason}; the parts are as they were: make room and run again"
        ) from error
    for name in parts:
        run.location.remove(name)
    return written


def _write(run: RunFolder, files: list[str], schema: pa.Schema, total: int, scratch: Path) -> int:
    written = 0
    with pq.ParquetWriter(scratch / RECORDS, schema, compression="zstd") as writer:
        for table in _sorted(run, files, total, scratch):
            table = _aligned(unique(table), schema)
            writer.write_table(table)
            written += len(table)
    return written


def _rows(run: RunFolder, name: str) -> int:
    try:
        with run.location.open(name) as file:
            return int(pq.ParquetFile(file).metadata.num_rows)
    except (pa.ArrowException, OSError) as error:
        raise damaged(run, name, error) from error


def _schema(run: RunFolder, files: list[str]) -> pa.Schema:
    """The columns of all files: those that every record has first, the others by name."""
    schemas = []
    for name in files:
        try:
            with run.location.open(name) as file:
                schemas.append(checked(pq.read_schema(file).remove_metadata().empty_table()).schema)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise damaged(run, name, error) from error
    try:
        whole = pa.unify_schemas(schemas, promote_options="permissive")
    except pa.ArrowException as error:  # columns that this version does not know
        raise damaged(run, f"a file of {PARTS}", error) from error
    fields = {field.name: field.type for field in whole}
    known = [name for name in COLUMNS if name in fields]
    return pa.schema([(name, fields[name]) for name in [*known, *sorted(set(fields) - set(known))]])


def _aligned(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table with the columns of a schema, null where it has none."""
    columns = [
        table.column(field.name).cast(field.type)
        if field.name in table.column_names
        else pa.nulls(len(table), field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def _sorted(run: RunFolder, files: list[str], total: int, scratch: Path) -> Iterator[pa.Table]:
    """All rows in pieces whose addresses follow one another; within a piece they are in any order."""
    count = min(BUCKETS, max(1, -(-total // ROWS)))
    if count == 1:
        yield pa.concat_tables([piece for name in files for piece in _pieces(run, name)], promote_options="permissive")
        return
    with _Buckets(scratch, count) as buckets:
        for name in files:
            for piece in _pieces(run, name):
                buckets.add(piece)
    for number in range(count):
        if piece := buckets.read(number):
            yield piece


def _pieces(run: RunFolder, name: str) -> Iterator[pa.Table]:
    """A file's rows in its order, a bounded number at a time."""
    try:
        with run.location.open(name) as file:
            for batch in pq.ParquetFile(file).iter_batches(ROWS):
                yield checked(pa.table(batch))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise damaged(run, name, error) from error


class _Buckets:
    """Rows by the beginning of their address, each bucket in files of its own."""

    def __init__(self, scratch: Path, count: int) -> None:
        self.scratch, self.count = scratch, count
        self.pending: dict[int, list[pa.Table]] = {}
        self.held = 0
        self.files: dict[int, list[Path]] = {}

    def __enter__(self) -> _Buckets:
        return self

    def __exit__(self, *raised: object) -> None:
        if raised[0] is None:
            self._spill()

    def add(self, table: pa.Table) -> None:
        """Put each row where it belongs."""
        addresses = table.column("address").combine_chunks()
        first = np.array([int(one[:2], 16) for one in addresses.to_pylist()]) * self.count // 256
        order = np.argsort(first, kind="stable")
        bounds = np.searchsorted(first[order], np.arange(self.count + 1))
        ordered = table.take(pa.array(order))
        for number in range(self.count):
            if bounds[number + 1] > bounds[number]:
                rows = ordered.slice(bounds[number], bounds[number + 1] - bounds[number])
                self.pending.setdefault(number, []).append(rows)
        self.held += len(table)
        if self.held >= 4 * ROWS:
            self._spill()

    def _spill(self) -> None:
        for number, tables in self.pending.items():
            files = self.files.setdefault(number, [])
            path = self.scratch / f"{number}-{len(files)}.parquet"
            pq.write_table(pa.concat_tables(tables, promote_options="permissive"), path, compression="zstd")
            files.append(path)
        self.pending, self.held = {}, 0

    def read(self, number: int) -> pa.Table | None:
        """The rows of a bucket."""
        files = self.files.get(number, [])
        tables = [pq.ParquetFile(path).read() for path in files]
        for path in files:
            path.unlink()
        return pa.concat_tables(tables, promote_options="permissive") if tables else None


@contextmanager
def _scratch(run: RunFolder) -> Iterator[Path]:
    """An empty folder on this machine; beside the records where these are, so that the result is renamed into place."""
    location = run.location
    if not location.local:
        with tempfile.TemporaryDirectory(prefix="guidestack-") as folder:
            yield Path(folder)
        return
    root = Path(location.root)
    for left in root.glob(f"{PREFIX}*"):  # of a merge that was killed; nobody else merges now
        shutil.rmtree(left, ignore_errors=True)
    beside = Path(tempfile.mkdtemp(prefix=PREFIX, dir=root))
    try:
        yield beside
    finally:
        shutil.rmtree(beside, ignore_errors=True)
