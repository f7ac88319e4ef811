"""What a report shows, from a run folder: numbers, methods, comparisons, plots."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...guidance.errors import InputError
from ..claims import Claim, Finding, findings
from ..measure import Cells, Number
from ..methods import Family, Matched, families
from ..metrics import Metric, RecordMetric, SetMetric, parse_metric
from ..store import SWEEP, RunFolder
from ..strength import GRID, Curve, Method, compare, compare_costs, widest
from . import svg
from .svg import Mark, Plot, Series
from .words import Verdict, number, verdict

ALWAYS = ("evaluations", "effective_scale", "across")
USUAL = ("saturation", "contrast")  # where a sweep names no metric and keeps its images
ALIGNMENT = ("clip_score", "concept", "background", "style")
"""Metrics of how well an image follows its prompt; the first one that a run has is what quality is plotted against."""
BESIDE = ("sampler", "steps", "size", "dtype")
MOST = 12  # methods that are compared pair by pair

Progress = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Column:
    """A metric, with its numbers by cell: of one full name.

    Args:
        metric: the metric.
        name: the full name.
        numbers: by cell.
    """

    metric: Metric
    name: str
    numbers: dict[str, Number]

    @property
    def text(self) -> str:
        """What `parse_metric` reads."""
        return str(self.metric)

    @property
    def better(self) -> str:
        """``"up"``, ``"down"`` or ``"none"``."""
        return self.metric.better


@dataclass(frozen=True, eq=False)
class Figure:
    """A plot with the numbers that it shows.

    Args:
        name: of its files.
        metric: its text.
        plot: the plot.
        rows: of its CSV, the header first.
    """

    name: str
    metric: str
    plot: Plot
    rows: Sequence[Sequence[Any]]


@dataclass
class Found:
    """All of it.

    Args:
        run: the folder.
        cells: its cells.
        families: the methods.
        columns: the metrics' numbers.
        prompts: that comparisons are of.
        verdicts: of pairs of methods over effective scale.
        by_cost: of pairs over evaluations, at one effective scale each.
        figures: the plots.
        claim: what a paper says of these cells, and what the run says of it; None if the sweep has none.
        notes: what is to be said.
    """

    run: RunFolder
    cells: Cells
    families: list[Family]
    columns: list[Column] = field(default_factory=list)
    prompts: int = 0
    verdicts: list[Verdict] = field(default_factory=list)
    by_cost: list[tuple[float, Verdict]] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    claim: tuple[Claim, list[Finding]] | None = None
    notes: list[str] = field(default_factory=list)

    def short(self, name: str) -> str:
        """What a cell is, as far as cells differ: its stack, sampler, steps, size and type."""
        told = {cell["cell"]: cell for cell in self.cells.told["cells"] if cell["cell"] in self.cells.by_name}
        differing = [key for key in BESIDE if len({str(cell[key]) for cell in told.values()}) > 1]
        parts = [str(told[name]["stack"]), *(_beside(key, told[name][key]) for key in differing)]
        return ", ".join(parts)

    @property
    def same(self) -> str:
        """What all cells have in common of these."""
        told = [cell for cell in self.cells.told["cells"] if cell["cell"] in self.cells.by_name]
        common = [key for key in BESIDE if len({str(cell[key]) for cell in told}) == 1 and told[0][key]]
        return ", ".join(_beside(key, told[0][key]) for key in common)

    @property
    def sweep(self) -> str:
        """The resolved sweep."""
        return self.run.location.read(SWEEP).decode()


def gather(run: RunFolder, more: Sequence[str] = (), progress: Progress = lambda what: None) -> Found:
    """Collect what a report shows.

    Args:
        run: the folder.
        more: metrics beside those that the sweep names.
        progress: told what is computed.

    Raises:
        InputError: there is no run, or a metric of `more` cannot be had.
    """
    sweep, cells = run.sweep(), Cells(run)
    found = Found(run, cells, families(cells.told, sweep.stacks, cells.by_name))
    asked = [*sweep.metrics, *more] or [text for text in USUAL if _has_images(cells)]
    wanted = [parse_metric(text) for text in dict.fromkeys(["evaluations", *asked, "effective_scale", "across"])]
    extractors = sorted({metric.extractor for metric in wanted if isinstance(metric, SetMetric) and metric.extractor})
    if extractors:
        cells.read_features(list(cells.by_name), extractors)
    for metric in wanted:
        progress(f"{metric}")
        try:
            found.columns += _columns(cells, metric)
        except InputError as error:
            if str(metric) in more:
                raise
            if str(metric) not in ALWAYS:
                found.notes.append(str(error))
    if sweep.claim is not None:
        progress("the claim")
        try:
            found.claim = sweep.claim, findings(run, sweep.claim)
        except InputError as error:
            found.notes.append(f"nothing can be said of the claim: {error}")
    _compared(found, progress)
    return found


def _has_images(cells: Cells) -> bool:
    return all(path is not None for cell in cells.by_name.values() for path in cell.listed("image"))


def _columns(cells: Cells, metric: Metric) -> list[Column]:
    """The numbers of a metric; numbers with different names are different columns."""
    by_name: dict[str, dict[str, Number]] = {}
    for name in cells.by_name:
        one = cells.numbered(metric, name)
        by_name.setdefault(one.name, {})[name] = one
    return [Column(metric, name, numbers) for name, numbers in by_name.items()]


def _compared(found: Found, progress: Progress) -> None:
    """Comparisons and plots of every metric that has a curve."""
    matched = Matched(found.cells, found.families)
    found.prompts = len(matched.prompts)
    found.notes += matched.unsure
    if matched.prompts and not matched.enough:
        found.notes.append(f"{found.prompts} prompts are too few for intervals of comparisons")
    if not matched.prompts:
        found.notes.append("no prompt is in every cell: methods cannot be compared until the sweep is complete")
    names = [column.name for column in found.columns]
    aligned = next((column for text in ALIGNMENT for column in found.columns if column.metric.name == text), None)
    for column in found.columns:
        if isinstance(column.metric, RecordMetric) and column.text in ALWAYS:
            continue
        if sum(name.partition("[")[0] == column.name.partition("[")[0] for name in names) > 1 and (
            set(column.numbers) != set(found.cells.by_name)
        ):
            found.notes.append(f"{column.name} is not in all cells, and is left out of plots and comparisons")
            continue
        progress(f"{column.text} at matched strength")
        methods = _methods(found, matched, column)
        if methods:
            _verdicts(found, matched, column, methods)
            found.figures.append(_by_scale(found, matched, column, methods))
        found.figures.append(_by_cost(found, column))
        if aligned is not None and aligned is not column:
            found.figures.append(_by_alignment(found, column, aligned))


def _methods(found: Found, matched: Matched, column: Column) -> list[Method]:
    if not matched.prompts:
        return []
    try:
        return matched.methods(column.metric)
    except InputError as error:
        found.notes.append(f"{column.text} at matched strength: {error}")
        return []


def _verdicts(found: Found, matched: Matched, column: Column, methods: Sequence[Method]) -> None:
    replicates = matched.replicates(column.metric)
    if len(methods) > MOST:
        found.notes.append(f"{len(methods)} methods are too many to compare each with each; the first {MOST} are")
    for one, other in itertools.combinations(methods[:MOST], 2):
        compared = compare(one, other, replicates)
        found.verdicts.append(verdict(compared, column.text, column.better))
        at = widest(one, other, compared.x)
        if at is not None:
            by_cost = compare_costs(one, other, at, replicates)
            found.by_cost.append((at, verdict(by_cost, column.text, column.better, "evaluations")))


def _beside(key: str, value: Any) -> str:
    if key == "size":
        return f"{value[0]}x{value[1]}" if value else "the model's size"
    return f"{value} steps" if key == "steps" else str(value)


# --- plots -----------------------------------------------------------------------------------------------------------


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60] or "metric"


def _up(column: Column) -> str:
    arrow = {"up": " (higher is better)", "down": " (lower is better)"}.get(column.better, "")
    return f"{column.text}{arrow}"


def _said(found: Found, cell: str, parts: Sequence[str]) -> str:
    return "\n".join([found.short(cell), *parts])


def _interval(one: Number | None) -> str:
    if one is None or math.isnan(one.value):
        return "no value"
    return number(one.value) + ("" if math.isnan(one.low) else f" [{number(one.low)}, {number(one.high)}]")


def _mean(found: Found, cell: str, column: str) -> float:
    values = found.cells.by_name[cell].numbers(column)
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan


def _by_scale(found: Found, matched: Matched, column: Column, methods: Sequence[Method]) -> Figure:
    """A metric over the measured effective scale: curves with pointwise bands."""
    replicates = matched.replicates(column.metric)
    places = {family.name: place for place, family in enumerate(found.families)}
    by_name = {family.name: family for family in found.families}
    header = ["kind", "method", "steps", "cell", "written", "effective_scale", "value", "low", "high"]
    series: list[Series] = []
    rows: list[Sequence[Any]] = [header]
    for method in methods:
        family = by_name[method.name]
        several = len(method.curves) > 1
        for curve, steps in zip(method.curves, family.cells, strict=True):
            label = f"{method.name}, {steps} steps" if several else method.name
            grid = np.unique(np.linspace(*curve.range, GRID)) if len(curve.pooled) > 1 else np.array([curve.range[0]])
            value, low, high = curve.band(grid, replicates)
            low, high = np.maximum(low, column.metric.range[0]), np.minimum(high, column.metric.range[1])
            marks = [_scale_mark(found, column, curve, place, cell) for place, cell in enumerate(curve.names)]
            series.append(Series(label, places[method.name], marks, (grid, value), (grid, low, high), label=label))
            for mark, cell in zip(marks, curve.names, strict=True):
                rows.append(
                    ["cell", method.name, steps, cell, family.values[cell], mark.x, mark.y, mark.low, mark.high]
                )
            for point in zip(grid, value, low, high, strict=True):
                rows.append(["curve", method.name, steps, "", "", *point])
    plot = Plot(
        f"{column.text} over effective scale",
        "effective scale, measured",
        _up(column),
        series,
        described="; ".join(_described(one) for one in series),
    )
    return Figure(f"{_slug(column.text)}-by-effective-scale", column.text, plot, rows)


def _scale_mark(found: Found, column: Column, curve: Curve, place: int, cell: str) -> Mark:
    one = column.numbers.get(cell)
    x, y = float(curve.x[0, place]), float(curve.y[0, place])
    low, high = (one.low, one.high) if one else (math.nan, math.nan)
    return Mark(
        x,
        y,
        low,
        high,
        said=_said(found, cell, [f"effective scale {number(x)}", f"{column.text} {_interval(one)}"]),
    )


def _described(one: Series) -> str:
    ys = [mark.y for mark in one.marks if math.isfinite(mark.y)]
    xs = [mark.x for mark in one.marks if math.isfinite(mark.x)]
    if not ys or not xs:
        return f"{one.name}: no values"
    first, last = min(one.marks, key=lambda mark: mark.x), max(one.marks, key=lambda mark: mark.x)
    return f"{one.name}: {number(first.y)} at {number(first.x)}, {number(last.y)} at {number(last.x)}"


def _by_cost(found: Found, column: Column) -> Figure:
    """A metric over network evaluations: a point a cell."""
    header = ["method", "cell", "written", "evaluations", "effective_scale", "value", "low", "high", "samples"]
    series: list[Series] = []
    rows: list[Sequence[Any]] = [header]
    for place, family in enumerate(found.families):
        marks = []
        for cells in family.cells.values():
            for cell in cells:
                one, cost = column.numbers.get(cell), _mean(found, cell, "evaluations")
                if one is None or math.isnan(one.value):
                    continue
                said = [f"{number(cost)} evaluations", f"{column.text} {_interval(one)}"]
                marks.append(Mark(cost, one.value, one.low, one.high, said=_said(found, cell, said)))
                scale = _mean(found, cell, "effective_scale")
                rows.append(
                    [family.name, cell, family.values[cell], cost, scale, one.value, one.low, one.high, one.samples]
                )
        series.append(Series(family.name, place, marks))
    plot = Plot(
        f"{column.text} over network evaluations",
        "network evaluations of a sample",
        _up(column),
        series,
        _front([(mark.x, mark.y) for one in series for mark in one.marks], "down", column.better),
        "; ".join(_described(one) for one in series),
        apart=True,
    )
    return Figure(f"{_slug(column.text)}-by-evaluations", column.text, plot, rows)


def _by_alignment(found: Found, column: Column, aligned: Column) -> Figure:
    """A metric over alignment: a point a cell, joined in the order of the scale."""
    header = ["method", "cell", "written", "alignment", "alignment_low", "alignment_high", "value", "low", "high"]
    series: list[Series] = []
    rows: list[Sequence[Any]] = [header]
    for place, family in enumerate(found.families):
        for steps, cells in family.cells.items():
            marks = []
            for cell in cells:
                one, other = column.numbers.get(cell), aligned.numbers.get(cell)
                if one is None or other is None or math.isnan(one.value) or math.isnan(other.value):
                    continue
                said = [f"{aligned.text} {_interval(other)}", f"{column.text} {_interval(one)}"]
                marks.append(
                    Mark(
                        other.value,
                        one.value,
                        one.low,
                        one.high,
                        other.low,
                        other.high,
                        _said(found, cell, said),
                    )
                )
                interval = (other.value, other.low, other.high, one.value, one.low, one.high)
                rows.append([family.name, cell, family.values[cell], *interval])
            line = (np.array([mark.x for mark in marks]), np.array([mark.y for mark in marks])) if marks else None
            label = f"{family.name}, {steps} steps" if len(family.cells) > 1 else family.name
            series.append(Series(label, place, marks, line))
    plot = Plot(
        f"{column.text} over {aligned.text}",
        f"{aligned.text} (higher is better)",
        _up(column),
        series,
        _front([(mark.x, mark.y) for one in series for mark in one.marks], "up", column.better),
        "; ".join(_described(one) for one in series),
    )
    return Figure(f"{_slug(column.text)}-by-{_slug(aligned.text)}", column.text, plot, rows)


def front(points: Sequence[tuple[float, float]], across: str, up: str) -> list[tuple[float, float]]:
    """The points that no other is at least as good as in both, and better in one; sorted by the first.

    Args:
        points: ``(x, y)``.
        across: which x is better, ``"up"`` or ``"down"``.
        up: which y is.

    >>> front([(1, 1), (2, 3), (3, 2)], "down", "up")
    [(1, 1), (2, 3)]
    """
    signs = (1 if across == "up" else -1, 1 if up == "up" else -1)
    kept: list[tuple[float, float]] = []
    best = -math.inf
    for x, y in sorted(set(points), key=lambda point: (-signs[0] * point[0], -signs[1] * point[1])):
        if signs[1] * y > best:
            best = signs[1] * y
            kept.append((x, y))
    return sorted(kept)


def _front(points: Sequence[tuple[float, float]], across: str, up: str) -> tuple[svg.Floats, svg.Floats] | None:
    """The front as a line with right angles; None where neither direction of y is better."""
    if up == "none" or not points:
        return None
    corners = front(points, across, up)
    xs, ys = [corners[0][0]], [corners[0][1]]
    for (x_before, y_before), (x, y) in itertools.pairwise(corners):
        # What costs more than a corner is at least as good as it; what aligns less likewise.
        xs += [x if across == "down" else x_before, x]
        ys += [y_before if across == "down" else y, y]
    return np.array(xs, float), np.array(ys, float)


def versions(cells: Cells) -> list[str]:
    """The versions that the samples were made with."""
    found: set[str] = set()
    table = cells.run.records(["versions"])
    for text in set(table.column("versions").to_pylist()):
        try:
            told = json.loads(text) if text else {}
        except ValueError:
            continue
        found |= {f"{name} {version}" for name, version in told.items()} if isinstance(told, dict) else set()
    return sorted(found)
