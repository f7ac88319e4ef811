"""The report's plots: the marks, curves and bands of each, and the rows of its CSV."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence

import numpy as np

from ..analysis.matched import GRID, Comparison, Floats, Method
from ..analysis.measure import mean
from ..analysis.methods import Matched
from ..statistics import undominated
from .found import Column, Found
from .plot import NEUTRAL, Mark, Plot, Series
from .words import number, parts

CALLED = 20  # letters of a method's name in a plot of differences
NOTHING = (math.nan, math.nan)


def slug(text: str) -> str:
    """A text as a part of a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60] or "metric"


def by_scale(found: Found, matched: Matched, column: Column, methods: Sequence[Method]) -> Plot:
    """A metric over the measured effective scale: curves with pointwise bands."""
    replicates, (least, most) = matched.replicates(column.metric), column.metric.range
    groups = {group.name: group for group in found.groups}
    series: list[Series] = []
    rows: list[list[object]] = [
        ["kind", "method", "steps", "cell", "written", "effective_scale", "value", "low", "high"]
    ]
    for method in methods:
        group, place = groups[method.name], found.places[method.name]
        labelled: set[str] = set()
        for curve, (steps, cells) in zip(method.curves, matched.parts(group, column.metric), strict=True):
            grid = np.unique(np.linspace(*curve.range, GRID)) if len(curve.pooled) > 1 else np.array([curve.range[0]])
            value, low, high = curve.band(grid, replicates)
            low, high = np.maximum(low, least), np.minimum(high, most)
            marks = []
            for x, y, cell in zip(curve.x[0].tolist(), curve.y[0].tolist(), cells, strict=True):
                ends = (one.low, one.high) if (one := column.of(cell)) else NOTHING
                said = found.said(cell, f"effective scale {number(x)}", column.told(cell))
                marks.append(Mark(x, y, *ends, said=said))
                rows.append(["cell", method.name, steps, cell, group.values[cell], x, y, *ends])
            rows += [
                ["curve", method.name, steps, "", "", *point] for point in zip(grid, value, low, high, strict=True)
            ]
            name, dash = group.called(steps), list(group.cells).index(steps)
            label = "" if name in labelled else name  # one of a curve in two parts
            labelled.add(name)
            series.append(Series(name, place, marks, (grid, value), (grid, low, high), label, dash))
    for group in matched.groups:
        for steps, cells in group.cells.items():
            for cell in cells:
                if found.left_out(column, cell):
                    mark = _baseline(found, cell, matched.scale(cell))
                    series.append(Series(f"{group.name}, baseline", found.places[group.name], [mark]))
                    written = group.values[cell]
                    rows.append(["baseline", group.name, steps, cell, written, mark.x, math.nan, *NOTHING])
    return Plot(
        f"{column.text} over effective scale",
        "effective scale, measured",
        column.axis,
        series,
        f"{slug(column.text)}-by-effective-scale",
        column.text,
        rows,
        best=column.better,
    )


def _baseline(found: Found, cell: str, x: float) -> Mark:
    said = found.said(cell, "baseline: what the others are compared with")
    return Mark(x, math.nan, said=said, baseline=True)


def by_column(found: Found, column: Column, against: Column, joined: bool = False) -> Plot:
    """A metric over another one: a point a cell.

    Args:
        found: what the report has.
        column: the metric.
        against: the other one.
        joined: whether lines join the cells of a method in the order of its scale, and marks have both intervals.
    """
    x = slug(against.text).replace("-", "_")
    rows: list[list[object]] = [
        ["method", "cell", "written", x, f"{x}_low", f"{x}_high", "effective_scale", "value", "low", "high", "samples"]
    ]
    series: list[Series] = []
    for place, group in enumerate(found.groups):
        for dash, (steps, cells) in enumerate(group.cells.items()):
            marks: list[Mark] = []
            for cell in cells:
                one, other = column.of(cell), against.of(cell)
                if one is None or other is None:
                    continue
                mark = _baseline(found, cell, other.value)
                if not found.left_out(column, cell):
                    aside = (other.low, other.high) if joined else NOTHING
                    said = found.said(cell, against.told(cell), column.told(cell))
                    mark = Mark(other.value, one.value, one.low, one.high, *aside, said)
                marks.append(mark)
                scale = mean(found.cells.by_name[cell].numbers("effective_scale"))
                ends = (other.value, other.low, other.high, scale, mark.y, mark.low, mark.high)
                rows.append([group.name, cell, group.values[cell], *ends, one.samples])
            name = group.called(steps) if joined else group.name
            label = name if joined or not dash else ""
            at = next((index for index, mark in enumerate(marks) if mark.baseline), len(marks))
            for part in filter(None, (marks[:at], marks[at : at + 1], marks[at + 1 :])):
                line = (np.array([mark.x for mark in part]), np.array([mark.y for mark in part])) if joined else None
                series.append(Series(name, place, part, line, label=label, dash=dash))
                label = ""
    points = [(mark.x, mark.y) for one in series for mark in one.marks if not mark.baseline]
    return Plot(
        f"{column.text} over {against.text}",
        against.axis,
        column.axis,
        series,
        f"{slug(column.text)}-by-{slug(against.text)}",
        column.text,
        rows,
        _front(points, against.better, column.better),
        apart=not joined,
        best=column.better,
    )


def difference(
    found: Found,
    column: Column,
    compared: Comparison,
    over: str,
    breaks: Sequence[int],
    name: str,
    tells: bool = True,
) -> Plot:
    """The difference of two methods with its simultaneous band, in a method's colour where the band is on one side.

    Args:
        found: what the report has.
        column: the metric.
        compared: the comparison.
        over: what its x is.
        breaks: the places in its x behind a stretch that was left out.
        name: of the files.
        tells: whether there are samples enough for it to tell anything; without, nothing has a colour.
    """
    title = f"{column.text} of {compared.one} minus {compared.other}"
    series: list[Series] = []
    for part in parts(compared, breaks):
        series.append(_band(title, NEUTRAL, part))
        for sign, stretch in part.stretches:
            if sign and tells:
                winner = compared.one if (sign > 0) == (column.better != "down") else compared.other
                series.append(_band(title, found.places[winner], stretch))
    columns = (compared.x, compared.difference, compared.low, compared.high, *compared.costs)
    header = ["one", "other", over.replace(" ", "_"), "difference", "low", "high", "cost_one", "cost_other"]
    rows = [[compared.one, compared.other, *map(float, row)] for row in zip(*columns, strict=True)]
    ends = {"up": ("better", "worse"), "down": ("worse", "better")}.get(column.better, ("higher", "lower"))
    who = compared.one if len(compared.one) <= CALLED else compared.one[: CALLED - 1] + "…"
    band = f"{number(float(compared.low.min()))} to {number(float(compared.high.max()))}"
    return Plot(
        title,
        over,
        title,
        series,
        name,
        column.text,
        [header, *rows],
        described=f"95% band of all {over.removesuffix('s')}s together: {band}",
        notes=(f"{who} {ends[0]} ↑", f"{ends[1]} ↓"),
    )


def _band(title: str, colour: int, part: Comparison) -> Series:
    x, y, low, high = part.x, part.difference, part.low, part.high
    if len(x) > 1:
        return Series(title, colour, (), (x, y), (x, low, high))
    at, value, least, most = (float(one[0]) for one in (x, y, low, high))
    said = f"{number(value)} [{number(least)}, {number(most)}]"
    return Series(title, colour, [Mark(at, value, least, most, said=said)])


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
    return sorted(undominated(points, lambda point: (signs[0] * point[0], signs[1] * point[1])))


def _front(points: Sequence[tuple[float, float]], across: str, up: str) -> tuple[Floats, Floats] | None:
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
