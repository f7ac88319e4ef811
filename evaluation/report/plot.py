"""The report's plots: what stands in one, drawn by matplotlib in the look of `plots`."""

from __future__ import annotations

import functools
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.transforms import ScaledTranslation
from numpy.typing import NDArray

from .. import plots
from ..plots import INK, LIGHT, MARKERS
from .words import number

Floats = NDArray[np.float64]

WIDTH, HEIGHT = 380, 250  # of a plot without its legend
SMALL = (320, 165)  # of plots of differences, which stand in a table
LETTERS = 48  # in a line of a legend
NEUTRAL = -1
"""The colour of what is of no method."""
DASHES = ("-", "--", ":", "-.")


@dataclass(frozen=True)
class Mark:
    """A point of a series.

    Args:
        x, y: where.
        low, high: ends of y's interval; NaN for none.
        left, right: ends of x's, likewise.
        said: what its tooltip says.
        baseline: whether it is the cell that others are compared with: it has no y, and stands at the best edge.
    """

    x: float
    y: float
    low: float = math.nan
    high: float = math.nan
    left: float = math.nan
    right: float = math.nan
    said: str = ""
    baseline: bool = False


@dataclass(frozen=True)
class Series:
    """The marks, the line and the band of a plot that have one colour.

    Args:
        name: of the method.
        colour: its place in the palette, or `NEUTRAL`.
        marks: points.
        line: a line through these, ``(x, y)``; None for none.
        band: ``(x, low, high)`` around a line; None for none.
        label: what the legend says; "" for nothing.
        dash: place of the line's style among those of one colour.
    """

    name: str
    colour: int
    marks: Sequence[Mark] = ()
    line: tuple[Floats, Floats] | None = None
    band: tuple[Floats, Floats, Floats] | None = None
    label: str = ""
    dash: int = 0

    def __str__(self) -> str:
        marks = [mark for mark in self.marks if math.isfinite(mark.y) and math.isfinite(mark.x)]
        if not marks:
            return self.name if any(mark.baseline for mark in self.marks) else f"{self.name}: no values"
        first, last = min(marks, key=lambda mark: mark.x), max(marks, key=lambda mark: mark.x)
        return f"{self.name}: {number(first.y)} at {number(first.x)}, {number(last.y)} at {number(last.x)}"

    @property
    def ink(self) -> str:
        """The colour of this series, as matplotlib is told it."""
        return INK["soft"] if self.colour == NEUTRAL else LIGHT[self.colour % len(LIGHT)]

    @property
    def css(self) -> str:
        """The class of this series in the SVG."""
        return "neutral" if self.colour == NEUTRAL else f"s{self.colour % len(LIGHT)}"

    @property
    def marker(self) -> dict[str, Any]:
        """How its marks look: hollow, and filled where the colours are used a second time."""
        filled = self.colour // len(LIGHT) % 2 and self.colour != NEUTRAL
        return {
            "marker": MARKERS[self.colour % len(LIGHT)],
            "color": self.ink,
            "markerfacecolor": self.ink if filled else INK["paper"],
            "markeredgewidth": 1.6,
        }


@dataclass(frozen=True, eq=False)
class Plot:
    """A plot with the numbers that it shows.

    Args:
        title: for the list of plots and for those who do not see it.
        across, up: what the axes are.
        series: of the methods.
        name: of its files.
        metric: whose text it is of.
        rows: of its CSV, the header first.
        front: corners of the front of what nothing is better than, ``(x, y)``; None for none.
        described: what there is to see, in words; by default the ends of each series.
        apart: whether marks of different series are moved apart sideways, as they are at the same x otherwise.
        best: which edge is the better one, ``"up"`` or ``"down"``.
        notes: what it means to be above and below 0 in a plot of differences; None for other plots.
    """

    title: str
    across: str
    up: str
    series: Sequence[Series]
    name: str = ""
    metric: str = ""
    rows: Sequence[Sequence[Any]] = ()
    front: tuple[Floats, Floats] | None = None
    described: str = ""
    apart: bool = False
    best: str = "up"
    notes: tuple[str, str] | None = None

    @functools.cached_property
    def svg(self) -> str:
        """The plot as an SVG element."""
        return drawn(self)


@functools.cache
def key(colour: int) -> str:
    """The mark of a series by itself, as an SVG element."""
    with plots.look("key"):
        made = plots.figure(26, 14, "none")
        axes = made.add_axes((0, 0, 1, 1), frameon=False, xlim=(0, 1), ylim=(0, 1), xticks=[], yticks=[])
        axes.grid(False)
        axes.plot([0.05, 0.5, 0.95], [0.5] * 3, markevery=[1], **Series("", colour).marker)
        return plots.to_svg(made, "", kind="plot key").replace('role="img" aria-label=""', 'aria-hidden="true"')


def drawn(plot: Plot) -> str:
    """A plot as an SVG element."""
    labels = [textwrap.fill(one.label, LETTERS) for one in plot.series if one.label]
    columns = 2 if max(map(len, labels), default=0) <= LETTERS // 2 - 3 else 1
    lines = sum(label.count("\n") + 1 for label in labels) + (plot.front is not None)
    height = HEIGHT + 17 * -(-lines // columns) if lines else HEIGHT
    with plots.look(plot.title):
        made = plots.figure(*(SMALL if plot.notes is not None else (WIDTH, height)))
        axes: Any = made.add_subplot()
        said: list[Any] = []
        if plot.notes is not None:
            axes.axhline(0, color=INK["soft"], linewidth=1, linestyle=":", gid="@zero")
            for side, note in zip(("left", "right"), plot.notes, strict=True):
                axes.set_title(note, loc=side, color=INK["soft"], style="italic")
        for one in plot.series:
            _series(axes, plot, one, said)
        if plot.front is not None:
            front = {"color": INK["soft"], "linewidth": 1.2, "linestyle": "--", "label": "no cell is better in both"}
            axes.plot(*plot.front, **front, gid="@front", zorder=1)
        axes.set_xlabel(plot.across)
        if plot.notes is None:
            axes.set_ylabel(plot.up)
        _limits(axes, plot)
        if labels:
            made.legend(loc="outside lower center", ncols=columns, columnspacing=1.4, handlelength=2.4)
        described = plot.described or "; ".join(str(one) for one in plot.series)
        return plots.to_svg(made, plot.title, described, said)


def _series(axes: Any, plot: Plot, one: Series, said: list[str]) -> None:
    """Draw a series, and append its tooltips to `said`."""
    if one.band is not None and len(one.band[0]) > 1 and np.isfinite(one.band[1]).all():
        axes.fill_between(*one.band, color=one.ink, alpha=0.14, linewidth=0, gid=f"@band {one.css}")
    style = {"linestyle": DASHES[one.dash % len(DASHES)] if one.line is not None else "none"}
    if one.label:
        axes.plot([], [], **one.marker, **style, label=textwrap.fill(one.label, LETTERS))
    if one.line is not None and len(one.line[0]) > 1:
        axes.plot(*one.line, color=one.ink, **style, gid=f"@curve {one.css}")
    for mark in one.marks:
        place = f"{one.css}|{len(said)}"
        if mark.baseline:
            _baseline(axes, plot, one, mark, f"@point baseline {place}")
        elif math.isfinite(mark.y):
            at = axes.transData + ScaledTranslation(_aside(plot, one, mark) / 72, 0, axes.figure.dpi_scale_trans)
            ends = [(mark.x, mark.low), (mark.x, mark.high), (mark.left, mark.y), (mark.right, mark.y)]
            axes.update_datalim([(mark.x, mark.y), *ends])  # what is moved does not count by itself
            whisker = {"color": one.ink, "alpha": 0.4, "linewidth": 1.2, "transform": at, "gid": "@whisker"}
            if math.isfinite(mark.low) and math.isfinite(mark.high):
                axes.plot([mark.x] * 2, [mark.low, mark.high], **whisker)
            if math.isfinite(mark.left) and math.isfinite(mark.right):
                axes.plot([mark.left, mark.right], [mark.y] * 2, **whisker)
            axes.plot([mark.x], [mark.y], **one.marker, linestyle="none", transform=at, gid=f"@point {place}")
        else:
            continue
        said.append(mark.said)


def _baseline(axes: Any, plot: Plot, one: Series, mark: Mark, gid: str) -> None:
    """The mark of the baseline, at the better edge, for which `_limits` leaves room."""
    at, height = axes.get_xaxis_transform(), 0.95 if plot.best == "up" else 0.05
    axes.plot([mark.x], [height], **{**one.marker, "alpha": 0.6}, transform=at, clip_on=False, gid=gid)
    others = [each.x for series in plot.series for each in series.marks]
    left = mark.x > (min(others) + max(others)) / 2
    place = {"xytext": (-8 if left else 8, 0), "textcoords": "offset points", "ha": "right" if left else "left"}
    axes.annotate("baseline", (mark.x, height), xycoords=at, va="center", color=INK["soft"], style="italic", **place)


def _aside(plot: Plot, own: Series, mark: Mark) -> float:
    """How far a mark is moved sideways: not at all where no other series has one at its x."""
    if not plot.apart:
        return 0.0
    xs = [each.x for one in plot.series for each in one.marks]
    near = (max(xs) - min(xs)) / 150
    sharing = [one for one in plot.series if any(abs(each.x - mark.x) <= near for each in one.marks)]
    place = next(number for number, one in enumerate(sharing) if one is own)
    return 10.0 * (place - (len(sharing) - 1) / 2)


def _limits(axes: Any, plot: Plot) -> None:
    """Axes that do not go below 0 where nothing does, with room for the baseline."""
    axes.autoscale_view()
    data = axes.dataLim
    if data.y0 >= 0 and plot.notes is None:
        axes.set_ylim(bottom=max(0.0, axes.get_ylim()[0]))
    if data.x0 >= 0:
        axes.set_xlim(left=max(0.0, axes.get_xlim()[0]))
    if any(mark.baseline for one in plot.series for mark in one.marks):
        low, high = axes.get_ylim()
        room = 0.12 * (high - low)
        axes.set_ylim((low, high + room) if plot.best == "up" else (low - room, high))
