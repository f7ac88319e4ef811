"""The metrics of a run: a number with an interval for each cell, from records, features and images.

Nothing here makes an image. It may be repeated at any time: features that are not there yet are computed from the
images and kept, everything else is computed anew.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ...guidance.errors import InputError
from ...guidance.words import counted
from .. import extractors
from .. import statistics as intervals
from ..metrics import (
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
from ..store.folder import EACH, METRICS, RECORDS, SCHEMA, VALUES, RunFolder, damaged, parquet_bytes

IMAGES = 64  # images in memory at a time
ROWS = 50_000  # features in memory at a time, of as many cells as fit

Values = NDArray[np.float64]
Rows = NDArray[np.int64]
Report = Callable[[str], None]


@dataclass(frozen=True)
class Number:
    """The value of a metric for a cell, with its interval.

    Args:
        name: the whole name.
        value: NaN if it has none.
        low, high: its interval; NaN if it has none.
        samples: number of samples that were measured.
        prompts: number of different prompts of these samples.
        note: what is to be said of it.
    """

    name: str
    value: float
    low: float
    high: float
    samples: int
    prompts: int
    note: str = ""


class Cell:
    """The samples of one cell, by prompt and seed, and their metrics.

    Args:
        run: the folder.
        table: their records.
        told: the cell, as `RunFolder.cells` has it.

    Attributes:
        held: features that are in memory, by the full name of the extractor.
    """

    def __init__(self, run: RunFolder, table: pa.Table, told: Mapping[str, Any]) -> None:
        self.run, self.told = run, told
        self.table = table.sort_by([("prompt_index", "ascending"), ("seed", "ascending"), ("address", "ascending")])
        self.prompts: Rows = self.table.column("prompt_index").to_numpy()
        self.held: dict[str, NDArray[np.float32]] = {}
        self._values: dict[tuple[str, ...], Values] = {}

    def __len__(self) -> int:
        return len(self.table)

    @functools.cached_property
    def addresses(self) -> list[str]:
        """The addresses of the samples."""
        return self.listed("address")

    def listed(self, column: str) -> list[Any]:
        """A column of the records; None where it is not there."""
        if column not in self.table.column_names:
            return [None] * len(self)
        return self.table.column(column).to_pylist()  # type: ignore[no-any-return]

    def numbers(self, column: str) -> Values:
        """A column of the records as numbers, NaN where it is null or not there."""
        return np.array([math.nan if one is None else float(one) for one in self.listed(column)])

    def shared(self, other: Cell) -> tuple[Rows, Rows]:
        """The rows of the samples whose prompt and seed another cell has too, and their rows there."""
        keys = [list(zip(cell.listed("prompt_index"), cell.listed("seed"), strict=True)) for cell in (self, other)]
        there = {key: row for row, key in enumerate(keys[1])}
        pairs = [(row, there[key]) for row, key in enumerate(keys[0]) if key in there]
        rows, others = np.array(pairs, np.int64).reshape(-1, 2).T
        return rows, others

    def images(self, rows: Sequence[int] | Rows) -> NDArray[np.uint8]:
        """Some of the images, shape ``(N, H, W, 3)``.

        Raises:
            InputError: they are not kept.
        """
        paths = self.listed("image")
        if any(paths[row] is None for row in rows):
            raise InputError(f"needs images, and {self.run} keeps none; run the sweep with images: png")
        return np.stack([np.asarray(self.run.image(paths[row])) for row in rows])

    # --- what metrics are made from --------------------------------------------------------------------------------

    def features(self, extractor: str) -> NDArray[np.float32]:
        """The features of all samples, shape ``(N, D)``; those that are missing are computed and kept.

        Raises:
            InputError: they are missing, and so are the images.
        """
        name = extractors.full_name(extractor)
        if name not in self.held:
            self.held[name] = _known(self.run, name, [self])[0]
        found = self.held[name]
        missing = np.flatnonzero(np.isnan(found).all(1)) if found.size else np.arange(len(self))
        if len(missing):
            net = extractors.load(extractor)
            found = found if found.size else np.full((len(self), net.dimensions), np.nan, np.float32)
            if found.shape[1] != net.dimensions:
                raise InputError(f"{self.run} has features of {found.shape[1]} numbers by {name}; remove them")
            for rows in _parts(missing.tolist()):
                found[rows] = net(self.images(rows))
                self.run.add_features(name, [self.addresses[row] for row in rows], found[rows])
            self.held[name] = found
        return found

    def values(self, metric: Metric, baseline: Cell | None = None) -> Values:
        """The metric of each sample, NaN where it has none.

        Raises:
            InputError: it has no value of a sample, or needs images, labels, a column or a baseline that is not there.
        """
        if isinstance(metric, RecordMetric):
            found = self.numbers(metric.column)
            if np.isnan(found).all():
                raise InputError(f"the records of {self.run} have no {metric.column}")
            return found
        if isinstance(metric, SampleMetric):
            return self._of_samples(metric)
        if isinstance(metric, PairMetric):
            if baseline is None:
                raise InputError(metric.lacks((), False, True))
            return self._of_pairs(metric, baseline)
        if isinstance(metric, PromptMetric):
            return self._of_prompts(metric)
        raise InputError("is of a set of images, and of no single one")

    def statistic(self, metric: Metric, rows: Rows, baseline: Cell | None = None) -> Statistic:
        """The metric as a function of places in `rows`, which are rows of this cell.

        Raises:
            InputError: as `values`; a set metric refuses the samples.
        """
        if isinstance(metric, SetMetric):
            features = self.features(str(metric.extractor))
            return metric.prepare(Samples(features[rows], self.prompts[rows]))
        values = self.values(metric, baseline)[rows]

        return lambda chosen: mean(values[chosen])

    def _of_prompts(self, metric: PromptMetric) -> Values:
        """The number of each sample's prompt, NaN where none of its images has one."""
        single, found = self._of_samples(metric.inner), np.full(len(self), math.nan)
        for rows in intervals.members(self.prompts):
            known = rows[~np.isnan(single[rows])]
            if len(known):
                found[rows] = metric.reduce(single[known])
        return found

    def _of_samples(self, metric: SampleMetric) -> Values:
        name = metric.full_name
        if (name,) in self._values:
            return self._values[name,]
        found = self.numbers(f"metric.{name}")
        missing = np.flatnonzero(np.isnan(found))
        labels = {label: self.listed(f"label.{label}") for label in metric.labels}
        # A sample without its label has no value, however often it is measured.
        missing = missing[[all(given[row] is not None for given in labels.values()) for row in missing]]
        features = self.features(metric.extractor) if metric.extractor and len(missing) else None
        prompts = self.listed("prompt")
        for rows in _parts(missing.tolist()):
            own = {label: [given[row] for row in rows] for label, given in labels.items()}
            texts = [prompts[row] or "" for row in rows]
            found[rows] = metric.measure(self.images(rows), own, texts, None if features is None else features[rows])
        self._values[name,] = found
        return found

    def _of_pairs(self, metric: PairMetric, baseline: Cell) -> Values:
        known = (metric.full_name, baseline.listed("cell")[0])
        if known in self._values:
            return self._values[known]
        found = np.full(len(self), math.nan)
        own, theirs = self.shared(baseline)
        if not len(own):
            raise InputError("the baseline has no sample of the same prompt and seed")
        for places in _parts(range(len(own))):
            rows = own[places]
            here, others = self.images(rows), baseline.images(theirs[places])
            if here.shape != others.shape:
                raise InputError(f"images of {_size(here)}, and the baseline's of {_size(others)}; compare equal sizes")
            found[rows] = metric.compare(here, others)
        self._values[known] = found
        return found


class Cells:
    """The cells of a run, in the order of its sweep.

    Args:
        run: the folder.

    Raises:
        InputError: it has no sweep, or no records.
    """

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        self.told = run.cells()
        self._told = {one["cell"]: one for one in self.told["cells"]}
        table = run.records()
        if not len(table):
            raise InputError(f"{run} has no records yet; `guidestack evaluate` makes them")
        for name in ("prompt_index", "seed"):
            if nulls := table.column(name).null_count:
                raise damaged(run, RECORDS, f"the column {name!r} has no value in {nulls} of {len(table)} rows")
        labels = [name for name in table.column_names if name.startswith("label.")]
        self.labels = {name[6:] for name in labels if table.column(name).null_count < len(table)}
        parts = {name: table.filter(pc.field("cell") == name) for name in self._told}
        self.by_name = {name: Cell(run, part, self._told[name]) for name, part in parts.items() if len(part)}

    @property
    def baseline(self) -> Cell | None:
        """The cell that others are compared with, if the sweep names one.

        Raises:
            InputError: it has no samples.
        """
        name = self.told.get("baseline")
        if name is not None and name not in self.by_name:
            raise InputError(f"compares with the baseline {self.called(name)}, of which {self.run} has no samples")
        return None if name is None else self.by_name[name]

    def called(self, name: str) -> str:
        """What a cell is, in one line: its stack, sampler, steps and size."""
        told = self._told[name]
        size = "{}x{}".format(*told["size"]) if told.get("size") else ""
        return f"{told['stack']} {told['sampler']} {told['steps']} steps {size}".rstrip()

    def left_out(self, metric: Metric) -> str | None:
        """The cell that comparisons of a metric are without: the baseline, which a metric of pairs compares with."""
        return self.told.get("baseline") if isinstance(metric, PairMetric) else None

    def compares(self, metric: Metric) -> Cell | None:
        """The baseline, if the metric compares with it.

        Raises:
            InputError: the metric lacks its labels or its baseline.
        """
        if lacking := metric.lacks(self.labels, self.told.get("baseline") is not None, images=True):
            raise InputError(lacking)
        return self.baseline if isinstance(metric, PairMetric) else None

    def numbered(self, metric: Metric, name: str) -> Number:
        """A metric of the cell of this name, with its interval.

        Raises:
            InputError: it needs what is not there; the message names the metric.
        """
        cell = self.by_name[name]
        try:
            return self._numbered(metric, cell, self.compares(metric))
        except TooFewError as error:
            prompts = len(np.unique(cell.prompts))
            named = metric.named(len(cell), prompts) if isinstance(metric, SetMetric) else metric.full_name
            return Number(named, math.nan, math.nan, math.nan, len(cell), prompts, f"no value: {error}")
        except InputError as error:
            raise InputError(f"the metric {metric}, {self.called(name)}: {error}") from None

    def _numbered(self, metric: Metric, cell: Cell, baseline: Cell | None) -> Number:
        if isinstance(metric, SetMetric):
            everything = np.arange(len(cell))
            statistic = cell.statistic(metric, everything)
            value, prompts = statistic(everything), cell.prompts
            if metric.share:
                low, high = intervals.wilson(singly(statistic, everything), prompts)
            else:
                low, high = intervals.jackknife(statistic, prompts, value, metric.range)
            named = metric.named(len(cell), len(np.unique(prompts)))
        else:
            values = cell.values(metric, baseline)
            known = ~np.isnan(values)
            values, prompts = values[known], cell.prompts[known]
            if not len(values):
                raise TooFewError("no sample has one")
            value = float(values.mean())
            if isinstance(metric, SampleMetric) and metric.share:
                low, high = intervals.wilson(values, prompts)
            else:
                low, high = intervals.bootstrap(values, prompts, metric.range)
            named = self.named(metric)
            if isinstance(metric, PromptMetric):
                named = metric.named(len(values), len(np.unique(prompts)))
        units = len(np.unique(prompts))
        note = metric.note(len(prompts))
        if math.isnan(low):
            note = f"{note}{'; ' * bool(note)}no interval from {counted(units, 'prompt')}"
        return Number(named, value, low, high, len(prompts), units, note)

    def each(self, metric: SampleMetric | PairMetric, name: str) -> pa.Table:
        """A metric of each image of the cell of this name, as `EACH`.

        Raises:
            InputError: as `numbered`.
        """
        cell = self.by_name[name]
        baseline = self.compares(metric)
        found = cell.values(metric, baseline)
        rows = np.flatnonzero(~np.isnan(found)).tolist()
        others: list[str | None] = [None] * len(rows)
        if baseline is not None:
            there = dict(zip(*(each.tolist() for each in cell.shared(baseline)), strict=True))
            others = [baseline.addresses[there[row]] for row in rows]
        columns = {
            "address": [cell.addresses[row] for row in rows],
            "cell": [name] * len(rows),
            "metric": [self.named(metric)] * len(rows),
            "text": [str(metric)] * len(rows),
            "value": found[rows],
            "baseline": others,
        }
        return pa.table(columns, EACH)

    def named(self, metric: Metric) -> str:
        """The whole name of a metric of single images, with the baseline that it compares with."""
        if isinstance(metric, PairMetric):
            return metric.against(self.called(str(self.told["baseline"])))
        return metric.full_name

    def paired(self, metric: Metric, one: str, other: str) -> tuple[Rows, Statistic, Statistic]:
        """A metric in two cells over the samples of the same prompts and seeds.

        Returns:
            A number for the prompt of each pair, and the metric in either cell as a function of places of pairs.

        Raises:
            InputError: there are no such samples, or the metric needs what is not there.
        """
        for name in (one, other):
            if name not in self.by_name:
                raise InputError(f"{self.run} has no samples of {self.called(name)}")
        cells = self.by_name[one], self.by_name[other]
        rows = cells[0].shared(cells[1])
        if not len(rows[0]):
            raise InputError(f"{self.called(one)} and {self.called(other)} have no prompt and seed in common")
        try:
            baseline = self.compares(metric)
            of, than = (cell.statistic(metric, own, baseline) for cell, own in zip(cells, rows, strict=True))
        except InputError as error:
            raise InputError(f"the metric {metric}: {error}") from None
        return cells[0].prompts[rows[0]], of, than

    def batches(self) -> Iterator[list[str]]:
        """The names of cells, so many at a time as their features fit into memory."""
        chosen: list[str] = []
        count = 0
        for name, cell in self.by_name.items():
            if chosen and count + len(cell) > ROWS:
                yield chosen
                chosen, count = [], 0
            chosen.append(name)
            count += len(cell)
        if chosen:
            yield chosen

    def read_features(self, names: Sequence[str], texts: Sequence[str]) -> None:
        """Read the features of some cells by some extractors, each file once; those of other cells are let go."""
        for cell in self.by_name.values():
            cell.held.clear()
        for text in texts:
            full = extractors.full_name(text)
            chosen = [self.by_name[name] for name in names]
            for cell, rows in zip(chosen, _known(self.run, full, chosen), strict=True):
                cell.held[full] = rows


def measure(run: RunFolder, metrics: Sequence[Metric], progress: Report = lambda what: None) -> pa.Table:
    """Compute metrics for every cell of a run, and write them to its ``metrics.parquet``.

    What they are of each image goes into ``values.parquet``; see `EACH`.

    Args:
        run: the folder.
        metrics: which.
        progress: told what is computed, in a line.

    Returns:
        A row for each cell and metric, in the order of the sweep and of `metrics`; see `SCHEMA`.

    Raises:
        InputError: a metric lacks its reference, its labels, its baseline, or the images.
    """
    cells = Cells(run)
    texts = sorted({metric.extractor for metric in metrics if isinstance(metric, SetMetric) and metric.extractor})
    found: dict[tuple[str, str], Number] = {}
    each: list[pa.Table] = []
    for names in cells.batches():
        cells.read_features(names, texts)
        for metric in metrics:
            for name in names:
                progress(f"{metric}: {cells.called(name)}")
                found[str(metric), name] = one = cells.numbered(metric, name)
                if isinstance(metric, SampleMetric | PairMetric) and not math.isnan(one.value):
                    each.append(cells.each(metric, name))
    rows = [_row(metric, name, found[str(metric), name]) for name in cells.by_name for metric in metrics]
    table = pa.Table.from_pylist(rows, SCHEMA)
    run.write_bytes(VALUES, parquet_bytes(pa.concat_tables([EACH.empty_table(), *each])))
    run.write_bytes(METRICS, parquet_bytes(table))
    return table


def singly(statistic: Statistic, rows: Rows) -> Values:
    """The statistic of each row by itself, for a statistic that is their mean."""
    return np.array([statistic(rows[place : place + 1]) for place in range(len(rows))])


def mean(values: Values) -> float:
    """The mean of the values that are known; NaN where none is."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan


def _row(metric: Metric, cell: str, number: Number) -> dict[str, Any]:
    told = {name: None if value != value else value for name, value in asdict(number).items()}  # NaN is null
    about = {"cell": cell, "metric": told.pop("name"), "text": str(metric)}
    return {**about, **told, "level": intervals.LEVEL, "better": metric.better}


def _known(run: RunFolder, name: str, cells: Sequence[Cell]) -> list[NDArray[np.float32]]:
    """The features of the samples of some cells, NaN where there are none yet; without columns if nobody has any."""
    place = {address: (which, row) for which, cell in enumerate(cells) for row, address in enumerate(cell.addresses)}
    found = [np.zeros((len(cell), 0), np.float32) for cell in cells]
    for addresses, rows in run.feature_shards(name):
        for address, row in zip(addresses, rows, strict=True):
            if address in place:
                which, at = place[address]
                if not found[which].size:
                    found[which] = np.full((len(cells[which]), len(row)), np.nan, np.float32)
                found[which][at] = row
    return found


def _parts(rows: Sequence[int]) -> Iterator[list[int]]:
    for start in range(0, len(rows), IMAGES):
        yield list(rows[start : start + IMAGES])


def _size(images: NDArray[np.uint8]) -> str:
    return f"{images.shape[1]}x{images.shape[2]}"
