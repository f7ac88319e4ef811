"""What a report shows, from a run folder: numbers, methods, comparisons, plots."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from ...guidance.errors import InputError
from ...guidance.words import counted_are
from ..analysis.findings import Finding, findings
from ..analysis.matched import GRID, Comparison, Curve, Method, compare, compare_costs, widest
from ..analysis.measure import Cells, Number
from ..analysis.methods import Family, Matched, families
from ..metrics import Metric, PairMetric, RecordMetric, SetMetric, parse_metric
from ..spec.claim import Claim
from ..store.folder import RECORDS, SWEEP, RunFolder, damaged
from . import svg
from .svg import Mark, Plot, Series
from .words import APART, FEW, Verdict, number, parts, span, verdict

ALWAYS = ("evaluations", "effective_scale", "across")
USUAL = ("saturation", "contrast")  # where a sweep names no metric and keeps its images
ALIGNMENT = ("clip_score", "concept", "background", "style")
"""Metrics of how well an image follows its prompt; the first one that a run has is what quality is plotted against."""
BESIDE = ("sampler", "steps", "size", "dtype")
MOST = 12  # methods that are compared pair by pair
PLOTTED = 100  # comparisons that have a plot
CALLED = 20  # letters of a method's name in one

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

    @cached_property
    def svg(self) -> str:
        """The plot as an element of the page."""
        return svg.drawn(self.plot)


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
        differences: plots of comparisons, by the name that their verdicts have.
        apart: pairs of methods that are nowhere equally strong, and what to do about it, in a line each.
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
    differences: dict[str, Figure] = field(default_factory=dict)
    apart: dict[tuple[str, str], str] = field(default_factory=dict)
    claim: tuple[Claim, list[Finding]] | None = None
    notes: list[str] = field(default_factory=list)

    def short(self, name: str) -> str:
        """What a cell is, as far as cells differ: its stack, sampler, steps, size and type."""
        told = {cell["cell"]: cell for cell in self.cells.told["cells"] if cell["cell"] in self.cells.by_name}
        differing = [key for key in BESIDE if len({str(cell[key]) for cell in told.values()}) > 1]
        parts = [str(told[name]["stack"]), *(_beside(key, told[name][key]) for key in differing)]
        return ", ".join(parts)

    @property
    def baseline(self) -> str | None:
        """The cell that others are compared with, if the sweep names one."""
        return self.cells.told.get("baseline")

    def left_out(self, column: Column, cell: str) -> bool:
        """Whether a cell is the baseline, which a metric of pairs would compare with itself."""
        return isinstance(column.metric, PairMetric) and cell == self.baseline

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
    if any(np.isnan(cell.numbers("evaluations")).any() for cell in cells.by_name.values()):
        raise damaged(run, RECORDS, "a row has no value in the column 'evaluations'")
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
        found.notes.append(f"{counted_are(found.prompts, 'prompt')} too few for intervals of comparisons")
    if not matched.prompts:
        found.notes.append("no prompt is in every cell: methods cannot be compared until the sweep is complete")
    _unmatched(found, matched)
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


def _unmatched(found: Found, matched: Matched) -> None:
    """Methods that are nowhere equally strong: said once, not for each metric."""
    ranges: dict[str, tuple[float, float]] = {}
    for family in matched.families[:MOST] if matched.prompts else []:
        cells = [cell for each in family.cells.values() for cell in each]
        scales = [matched.scale(cell) for cell in cells]
        ranges[family.name] = (min(scales), max(scales))
    for (one, (low, high)), (other, (low_too, high_too)) in itertools.combinations(ranges.items(), 2):
        if high < low_too or high_too < low:
            weak, strong = (one, other) if high < low_too else (other, one)
            found.apart[one, other] = (
                f"{one} and {other} cannot be compared: {one} reached effective scales {span(low, high)}, {other} "
                f"{span(low_too, high_too)}. Add greater scales of {weak} to the sweep, or smaller ones of {strong}, "
                "and run it again into the same folder: what is there is kept."
            )


def _verdicts(found: Found, matched: Matched, column: Column, methods: Sequence[Method]) -> None:
    replicates = matched.replicates(column.metric)
    if len(methods) > MOST:
        found.notes.append(f"{len(methods)} methods are too many to compare each with each; the first {MOST} are")
    for one, other in itertools.combinations(methods[:MOST], 2):
        compared = compare(one, other, replicates)
        breaks = _breaks(one, other, compared)
        few = _few(found, column, (one.name, other.name))
        told = verdict(compared, column.text, column.better, breaks=breaks, few=few)
        found.verdicts.append(_plotted(found, column, compared, told, "effective scale", breaks))
        at = widest(one, other, compared.x)
        if at is not None:
            by_cost = compare_costs(one, other, at, replicates)
            told = verdict(by_cost, column.text, column.better, "evaluations", few=few)
            found.by_cost.append((at, _plotted(found, column, by_cost, told, "evaluations")))


def _few(found: Found, column: Column, names: Sequence[str]) -> str:
    """Why the cells of some methods have too few samples for a comparison; "" if they have enough."""
    cells = [cell for one in found.families if one.name in names for each in one.cells.values() for cell in each]
    numbers = [column.numbers[cell].samples for cell in cells if not found.left_out(column, cell)]
    least = column.metric.compared
    samples = min(numbers, default=least)
    return "" if samples >= least else f"{counted_are(samples, 'sample')} too few to tell, {least} are wanted at least"


def _breaks(one: Method, other: Method, compared: Comparison) -> list[int]:
    """The places in the comparison's x behind a stretch that one of the methods does not reach."""
    x = compared.x
    if len(x) < 2:
        return []
    between = (x[1:] + x[:-1]) / 2
    there = one.on(between).there.any(0) & other.on(between).there.any(0)
    return [int(place) + 1 for place in np.flatnonzero(~there)]


def _beside(key: str, value: Any) -> str:
    if key == "size":
        return f"{value[0]}x{value[1]}" if value else "the model's size"
    return f"{value} steps" if key == "steps" else str(value)


# --- plots of differences --------------------------------------------------------------------------------------------


def _plotted(
    found: Found, column: Column, compared: Comparison, told: Verdict, over: str, breaks: Sequence[int] = ()
) -> Verdict:
    """The verdict with the name of its plot, which is added to those of the report."""
    if told.kind == APART or len(found.differences) >= PLOTTED:
        return told
    kind = "difference" if over == "effective scale" else "difference-by-evaluations"
    name = f"{_slug(column.text)}-{kind}-{1 + sum(each.metric == column.text for each in found.differences.values())}"
    if name in found.differences:  # of another metric, whose name has the same letters
        name = f"{name}-{len(found.differences)}"
    found.differences[name] = _difference(found, column, compared, over, breaks, name, told.kind != FEW)
    return replace(told, plot=name)


def _difference(
    found: Found,
    column: Column,
    compared: Comparison,
    over: str,
    breaks: Sequence[int],
    name: str,
    tells: bool = True,
) -> Figure:
    """The difference of two methods with its simultaneous band; in a method's colour where the band is on one side.

    No colour where that tells nothing, as there are too few samples.
    """
    places = {family.name: place for place, family in enumerate(found.families)}
    title = f"{column.text} of {compared.one} minus {compared.other}"
    series: list[Series] = []
    for part in parts(compared, breaks):
        series.append(_band(title, svg.NEUTRAL, part, slice(None)))
        for stretch in part.stretches:
            if stretch.sign and tells:
                winner = compared.one if (stretch.sign > 0) == (column.better != "down") else compared.other
                there = np.flatnonzero((stretch.low <= part.x) & (part.x <= stretch.high))
                series.append(_band(title, places[winner], part, slice(there[0], there[-1] + 1)))
    header = ["one", "other", over.replace(" ", "_"), "difference", "low", "high", "cost_one", "cost_other"]
    columns = (compared.x, compared.difference, compared.low, compared.high, *compared.costs)
    rows: list[Sequence[Any]] = [header]
    rows += [[compared.one, compared.other, *map(float, row)] for row in zip(*columns, strict=True)]
    ends = ("better", "worse") if column.better == "up" else ("worse", "better")
    ends = ("higher", "lower") if column.better == "none" else ends
    who = compared.one if len(compared.one) <= CALLED else compared.one[: CALLED - 1] + "…"
    together = f"all {over}s" if over == "effective scale" else f"all {over}"
    low, high = float(compared.low.min()), float(compared.high.max())
    plot = Plot(
        title,
        over,
        title,
        series,
        described=f"95% band of {together} together: {number(low)} to {number(high)}",
        notes=(f"{who} {ends[0]} ↑", f"{ends[1]} ↓"),
    )
    return Figure(name, column.text, plot, rows)


def _band(title: str, colour: int, part: Comparison, cut: slice) -> Series:
    x, y, low, high = part.x[cut], part.difference[cut], part.low[cut], part.high[cut]
    if len(x) > 1:
        return Series(title, colour, (), (x, y), (x, low, high))
    said = f"{number(float(y[0]))} [{number(float(low[0]))}, {number(float(high[0]))}]"
    return Series(title, colour, [Mark(float(x[0]), float(y[0]), float(low[0]), float(high[0]), said=said)])


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
        pieces = matched.parts(family, column.metric)
        ends = {steps: place for place, (steps, _) in enumerate(pieces)}
        for place, (curve, (steps, _)) in enumerate(zip(method.curves, pieces, strict=True)):
            name = f"{method.name}, {steps} steps" if len(family.cells) > 1 else method.name
            label = name if ends[steps] == place else ""  # one of a curve in two parts
            dash = list(family.cells).index(steps)
            grid = np.unique(np.linspace(*curve.range, GRID)) if len(curve.pooled) > 1 else np.array([curve.range[0]])
            value, low, high = curve.band(grid, replicates)
            low, high = np.maximum(low, column.metric.range[0]), np.minimum(high, column.metric.range[1])
            marks = [_scale_mark(found, column, curve, point, cell) for point, cell in enumerate(curve.names)]
            series.append(Series(name, places[method.name], marks, (grid, value), (grid, low, high), label, dash))
            for mark, cell in zip(marks, curve.names, strict=True):
                rows.append(
                    ["cell", method.name, steps, cell, family.values[cell], mark.x, mark.y, mark.low, mark.high]
                )
            for point in zip(grid, value, low, high, strict=True):
                rows.append(["curve", method.name, steps, "", "", *point])
    for family in matched.families:
        for steps, cells in family.cells.items():
            if matched.left_out(column.metric) in cells:
                mark = _baseline_mark(found, found.baseline or "", matched.scale(found.baseline or ""))
                series.append(Series(f"{family.name}, baseline", places[family.name], [mark]))
                written = family.values[found.baseline or ""]
                rows.append(["baseline", family.name, steps, found.baseline, written, mark.x, *[math.nan] * 3])
    plot = Plot(
        f"{column.text} over effective scale",
        "effective scale, measured",
        _up(column),
        series,
        described="; ".join(_described(one) for one in series),
        best=column.better,
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


def _baseline_mark(found: Found, cell: str, x: float) -> Mark:
    said = _said(found, cell, ["baseline: what the others are compared with"])
    return Mark(x, math.nan, said=said, baseline=True)


def _described(one: Series) -> str:
    marks = [mark for mark in one.marks if math.isfinite(mark.y) and math.isfinite(mark.x)]
    if not marks:
        return f"{one.name}: no values" if not any(mark.baseline for mark in one.marks) else one.name
    first, last = min(marks, key=lambda mark: mark.x), max(marks, key=lambda mark: mark.x)
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
                if found.left_out(column, cell):
                    marks.append(_baseline_mark(found, cell, cost))
                    rows.append([family.name, cell, family.values[cell], cost, _mean(found, cell, "effective_scale"),
                                 *[math.nan] * 3, one.samples])  # fmt: skip
                    continue
                said = [f"{number(cost)} evaluations", f"{column.text} {_interval(one)}"]
                marks.append(Mark(cost, one.value, one.low, one.high, said=_said(found, cell, said)))
                scale = _mean(found, cell, "effective_scale")
                rows.append(
                    [family.name, cell, family.values[cell], cost, scale, one.value, one.low, one.high, one.samples]
                )
        series.append(Series(family.name, place, marks, label=family.name))
    plot = Plot(
        f"{column.text} over network evaluations",
        "network evaluations of a sample",
        _up(column),
        series,
        _front([(mark.x, mark.y) for one in series for mark in one.marks if not mark.baseline], "down", column.better),
        "; ".join(_described(one) for one in series),
        apart=True,
        best=column.better,
    )
    return Figure(f"{_slug(column.text)}-by-evaluations", column.text, plot, rows)


def _by_alignment(found: Found, column: Column, aligned: Column) -> Figure:
    """A metric over alignment: a point a cell, joined in the order of the scale."""
    header = ["method", "cell", "written", "alignment", "alignment_low", "alignment_high", "value", "low", "high"]
    series: list[Series] = []
    rows: list[Sequence[Any]] = [header]
    for place, family in enumerate(found.families):
        for dash, (steps, cells) in enumerate(family.cells.items()):
            marks = []
            for cell in cells:
                one, other = column.numbers.get(cell), aligned.numbers.get(cell)
                if one is None or other is None or math.isnan(one.value) or math.isnan(other.value):
                    continue
                if found.left_out(column, cell):
                    marks.append(_baseline_mark(found, cell, other.value))
                    ends = (other.value, other.low, other.high)
                    rows.append([family.name, cell, family.values[cell], *ends, *[math.nan] * 3])
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
            label = f"{family.name}, {steps} steps" if len(family.cells) > 1 else family.name
            at = next((index for index, mark in enumerate(marks) if mark.baseline), len(marks))
            for part in (marks[:at], marks[at : at + 1], marks[at + 1 :]):
                if part:
                    line = (np.array([mark.x for mark in part]), np.array([mark.y for mark in part]))
                    named = label if part[-1] is marks[-1] else ""
                    series.append(Series(label, place, part, line, label=named, dash=dash))
    plot = Plot(
        f"{column.text} over {aligned.text}",
        f"{aligned.text} (higher is better)",
        _up(column),
        series,
        _front([(mark.x, mark.y) for one in series for mark in one.marks if not mark.baseline], "up", column.better),
        "; ".join(_described(one) for one in series),
        best=column.better,
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
