"""What a report shows, from a run folder: numbers, methods, comparisons, plots."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from ...guidance.errors import InputError
from ...guidance.words import counted_are
from ..analysis.findings import findings
from ..analysis.matched import Comparison, Floats, Method, compare, compare_costs, widest
from ..analysis.measure import Cells, Number
from ..analysis.methods import Matched, method_cells
from ..metrics import Metric, RecordMetric, SetMetric, parse_metric
from ..store.folder import RECORDS, RunFolder, damaged
from . import figures
from .found import Column, Found
from .words import ComparisonRow, Kind, span, verdict

ALWAYS = ("evaluations", "effective_scale", "across")
USUAL = ("saturation", "contrast")  # where a sweep names no metric and keeps its images
ALIGNMENT = ("clip_score", "concept", "background", "style")
"""Metrics of how well an image follows its prompt; the first one that a run has is what quality is plotted against."""
MAX_METHODS = 12  # methods that are compared pair by pair
PLOTTED = 100  # comparisons that have a plot

Progress = Callable[[str], None]


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
    found = Found(cells, method_cells(cells.told, sweep.stacks, cells.by_name))
    kept = all(path is not None for cell in cells.by_name.values() for path in cell.listed("image"))
    asked = [*sweep.metrics, *more] or list(USUAL if kept else ())
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
            found.claim = sweep.claim, findings(run, sweep.claim, cells)
        except InputError as error:
            found.notes.append(f"nothing can be said of the claim: {error}")
    _compared(found, progress)
    return found


def _columns(cells: Cells, metric: Metric) -> list[Column]:
    """The numbers of a metric; numbers with different names are different columns."""
    by_name: dict[str, dict[str, Number]] = {}
    for name in cells.by_name:
        one = cells.numbered(metric, name)
        by_name.setdefault(one.name, {})[name] = one
    return [Column(metric, name, numbers) for name, numbers in by_name.items()]


def _compared(found: Found, progress: Progress) -> None:
    """Comparisons and plots of every metric that has a curve."""
    matched = Matched(found.cells, found.groups)
    found.prompts = len(matched.prompts)
    found.notes += matched.unsure
    if not matched.prompts:
        found.notes.append("no prompt is in every cell: methods cannot be compared until the sweep is complete")
    elif not matched.enough:
        found.notes.append(f"{counted_are(found.prompts, 'prompt')} too few for intervals of comparisons")
    cost = next(column for column in found.columns if column.text == "evaluations")
    aligned = next((column for text in ALIGNMENT for column in found.columns if column.metric.name == text), None)
    several = [column.text for column in found.columns]
    for column in found.columns:
        if isinstance(column.metric, RecordMetric) and column.text in ALWAYS:
            continue
        if several.count(column.text) > 1:
            found.notes.append(f"{column.name} is not in all cells, and is left out of plots and comparisons")
            continue
        progress(f"{column.text} at matched strength")
        methods = _methods(found, matched, column)
        if methods:
            _verdicts(found, matched, column, methods)
            found.plots.append(figures.by_scale(found, matched, column, methods))
        found.plots.append(figures.by_column(found, column, cost))
        if aligned is not None and aligned is not column:
            found.plots.append(figures.by_column(found, column, aligned, joined=True))
    _apart(found, matched)


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
    if len(methods) > MAX_METHODS:
        found.notes.append(
            f"{len(methods)} methods are too many to compare each with each; the first {MAX_METHODS} are"
        )
    for one, other in itertools.combinations(methods[:MAX_METHODS], 2):
        few = _few(found, column, (one.name, other.name))
        compared = compare(one, other, replicates)
        found.verdicts.append(
            _verdict(found, column, compared, few, "effective scale", _breaks(one, other, compared.x))
        )
        at = widest(one, other, compared.x)
        if at is not None:
            by_cost = compare_costs(one, other, at, replicates)
            found.by_cost.append((at, _verdict(found, column, by_cost, few, "evaluations")))


def _verdict(
    found: Found, column: Column, compared: Comparison, few: str, over: str, breaks: Sequence[int] = ()
) -> ComparisonRow:
    """The verdict on a comparison, with the name of its plot, which is added to those of the report."""
    told = verdict(compared, column.text, column.better, over, breaks, few)
    if told.kind == Kind.APART or len(found.differences) >= PLOTTED:
        return told
    begin = f"{figures.slug(column.text)}-difference"
    number = 1 + sum(name.startswith(begin) for name in found.differences)
    name = f"{begin}{'-by-evaluations' * (over == 'evaluations')}-{number}"
    found.differences[name] = figures.difference(found, column, compared, over, breaks, name, told.kind != Kind.FEW)
    return replace(told, plot=name)


def _few(found: Found, column: Column, names: Sequence[str]) -> str:
    """Why the cells of some methods have too few samples for a comparison; "" if they have enough."""
    cells = [cell for one in found.groups if one.name in names for each in one.cells.values() for cell in each]
    numbers = [column.numbers[cell].samples for cell in cells if not found.left_out(column, cell)]
    least = column.metric.compared
    samples = min(numbers, default=least)
    return "" if samples >= least else f"{counted_are(samples, 'sample')} too few to tell, {least} are wanted at least"


def _breaks(one: Method, other: Method, x: Floats) -> list[int]:
    """The places in the x of a comparison behind a stretch that one of the methods does not reach."""
    if len(x) < 2:
        return []
    between = (x[1:] + x[:-1]) / 2
    there = one.on(between).there.any(0) & other.on(between).there.any(0)
    return [int(place) + 1 for place in np.flatnonzero(~there)]


def _apart(found: Found, matched: Matched) -> None:
    """Say once of the methods that no metric can compare what to do about it."""
    kinds: dict[tuple[str, str], set[str]] = {}
    for row in found.verdicts:
        kinds.setdefault((row.one, row.other), set()).add(row.kind)
    by_name = {group.name: group for group in found.groups}
    for one, other in [pair for pair, own in kinds.items() if own == {Kind.APART}]:
        (low, high), (low_too, high_too) = (matched.range(by_name[name]) for name in (one, other))
        told = "they have no effective scale in common. Add scales to the sweep."
        if high < low_too or high_too < low:
            weak, strong = (one, other) if high < low_too else (other, one)
            told = (
                f"{one} reached effective scales {span(low, high)}, {other} {span(low_too, high_too)}. Add greater "
                f"scales of {weak} to the sweep, or smaller ones of {strong}, and run it again into the same folder: "
                "what is there is kept."
            )
        found.apart[one, other] = f"{one} and {other} cannot be compared: {told}"
