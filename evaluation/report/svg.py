"""Plots as SVG that takes its colours from CSS variables: light and dark, on the page and as files of their own."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

WIDTH, HEIGHT = 380, 290
TOP, BOTTOM, LEFT = 14, 42, 50
SMALL = (270, 150)  # of plots of differences, which stand in a table
LETTER = 7.3  # width of a letter at 11.5 px, bold, at most about
LONGEST = 17  # letters of a direct label
SERIES = 8
NEUTRAL = -1
"""The colour of what is of no method."""
SHAPES = ("circle", "square", "triangle", "diamond", "down", "plus", "star", "cross")

# Okabe and Ito's palette without its yellow, made dark enough for text on white, and light enough for text on black.
LIGHT = ("#0072B2", "#C24E00", "#00795A", "#A0457F", "#8F6100", "#2A76A9", "#5B5B5B", "#7A3B12")
DARK = ("#56B4E9", "#F08A4B", "#2CC295", "#E39CC6", "#E8B339", "#8FCBF0", "#B8B8B8", "#FFB58A")

STYLE = """
.plot text { font: 11.5px system-ui, "Segoe UI", "Helvetica Neue", Arial, sans-serif; fill: var(--ink); \
font-variant-numeric: tabular-nums; }
.plot .tick { fill: var(--soft); font-size: 11px; }
.plot .grid { stroke: var(--line); stroke-width: 1; }
.plot .axis { stroke: var(--soft); stroke-width: 1; }
.plot .curve { fill: none; stroke: var(--c); stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
.plot .thin { fill: none; stroke: var(--c); stroke-width: 1; stroke-opacity: .55; }
.plot .band { fill: var(--c); fill-opacity: .14; stroke: none; }
.plot .whisker { stroke: var(--c); stroke-width: 1.2; stroke-opacity: .38; }
.plot .mark { fill: var(--paper); stroke: var(--c); stroke-width: 1.8; }
.plot .front { fill: none; stroke: var(--soft); stroke-width: 1.2; stroke-dasharray: 3 3; }
.plot .name { fill: var(--c); font-weight: 600; stroke: var(--paper); stroke-width: 3.5px; stroke-linejoin: round; \
paint-order: stroke; pointer-events: none; }
.plot .neutral { --c: var(--soft); }
.plot .zero { stroke: var(--soft); stroke-width: 1; stroke-dasharray: 2 3; }
.plot .baseline .mark { stroke-dasharray: 2 1.6; }
.plot .note { fill: var(--soft); font-size: 11px; font-style: italic; }
"""


def variables(colours: Sequence[str]) -> str:
    """CSS that gives each series its colour."""
    return " ".join(f".s{place} {{ --c: {colour}; }}" for place, colour in enumerate(colours))


OWN_STYLE = (
    ".plot { --ink: #1c1c1a; --soft: #62625c; --line: #e6e5df; --paper: #ffffff; background: var(--paper); } "
    + variables(LIGHT)
    + " @media (prefers-color-scheme: dark) { .plot { --ink: #e8e6e1; --soft: #a09d95; --line: #34332f; "
    + "--paper: #181816; } "
    + variables(DARK)
    + " }"
    + STYLE
)


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
    """What is drawn in one colour.

    Args:
        name: of the method.
        colour: its place in the palette, or `NEUTRAL`.
        marks: points.
        line: a line through these, ``(x, y)``; None for none.
        band: ``(x, low, high)`` around a line; None for none.
        label: what the direct label says; "" for none.
    """

    name: str
    colour: int
    marks: Sequence[Mark] = ()
    line: tuple[Floats, Floats] | None = None
    band: tuple[Floats, Floats, Floats] | None = None
    label: str = ""


@dataclass(frozen=True)
class Plot:
    """A plot.

    Args:
        title: for the list of plots and for those who do not see it.
        across, up: what the axes are.
        series: of the methods.
        front: corners of the front of what nothing is better than, ``(x, y)``; None for none.
        described: what there is to see, in words.
        apart: whether marks of different series are moved apart sideways, as they are at the same x otherwise.
        best: which edge is the better one, ``"up"`` or ``"down"``.
        size: width and height.
        notes: what is said at the upper and at the lower edge of a plot of differences, which has a line at 0; None for
            other plots.
    """

    title: str
    across: str
    up: str
    series: Sequence[Series]
    front: tuple[Floats, Floats] | None = None
    described: str = ""
    apart: bool = False
    best: str = "up"
    size: tuple[int, int] = (WIDTH, HEIGHT)
    notes: tuple[str, str] | None = None

    @property
    def base(self) -> int:
        """Where the x axis is."""
        return self.size[1] - BOTTOM


def ticks(low: float, high: float, count: int = 6) -> list[float]:
    """Round numbers from `low` to `high`, about so many.

    >>> ticks(0.0, 1.0), ticks(3.1, 3.35)
    ([0.0, 0.2, 0.4, 0.6, 0.8, 1.0], [3.1, 3.15, 3.2, 3.25, 3.3, 3.35])
    """
    if not high > low:
        return [low]
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.7)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(place * step, 12) for place in range(first, last + 1)]


def shown(value: float, among: Sequence[float] = ()) -> str:
    """A tick's text: as many digits as tell it from its neighbours."""
    digits = next((d for d in range(9) if all(abs(round(one, d) - one) <= 1e-9 * abs(one) for one in among)), 9)
    return f"{value:.{digits}f}" if abs(value) < 1e6 else f"{value:.3g}"


class _Scale:
    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self.low, self.high, self.start, self.end = low, high, start, end

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def _extent(values: Sequence[float], pad: float = 0.06) -> tuple[float, float]:
    known = [value for value in values if math.isfinite(value)]
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    room = (high - low) * pad or abs(high) * 0.05 or 0.5
    return (low - room if low < 0 or low - room >= 0 else 0.0), high + room


def _shape(kind: str, x: float, y: float, size: float = 4.2) -> str:
    r = size
    if kind == "circle":
        return f'<circle class="mark" cx="{x:.1f}" cy="{y:.1f}" r="{r - 0.4:.1f}"/>'
    corners = {
        "square": [(-r, -r), (r, -r), (r, r), (-r, r)],
        "triangle": [(0, -1.2 * r), (1.15 * r, 0.9 * r), (-1.15 * r, 0.9 * r)],
        "diamond": [(0, -1.35 * r), (1.35 * r, 0), (0, 1.35 * r), (-1.35 * r, 0)],
        "down": [(0, 1.2 * r), (1.15 * r, -0.9 * r), (-1.15 * r, -0.9 * r)],
    }.get(kind)
    if corners is None:
        turns = 8 if kind == "star" else 4
        around = [
            (math.pi * step / turns, 1.4 * r if step % 2 == (kind != "plus") else 0.55 * r) for step in range(2 * turns)
        ]
        corners = [(math.sin(angle) * far, -math.cos(angle) * far) for angle, far in around]
    points = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in corners)
    return f'<polygon class="mark" points="{points}"/>'


def coloured(colour: int) -> str:
    """The class of a series."""
    return "neutral" if colour == NEUTRAL else f"s{colour % SERIES}"


def key(colour: int) -> str:
    """The mark of a series by itself, for a legend."""
    place = colour % SERIES
    return (
        f'<svg class="plot key s{place}" width="26" height="14" viewBox="0 0 26 14" aria-hidden="true">'
        f'<path class="curve" d="M1 7H25"/>{_shape(SHAPES[place], 13, 7)}</svg>'
    )


def drawn(plot: Plot, identity: str = "", own: bool = False) -> str:
    """A plot as SVG.

    Args:
        plot: the plot.
        identity: the element's id; "" for none.
        own: whether it is a file of its own, with its colours in it.
    """
    marks = [mark for one in plot.series for mark in one.marks]
    xs = [value for mark in marks for value in (mark.x, mark.left, mark.right)]
    ys = [value for mark in marks for value in (mark.y, mark.low, mark.high)]
    for one in plot.series:
        if one.line:
            xs += list(one.line[0])
            ys += list(one.line[1])
        if one.band:
            ys += [*one.band[1], *one.band[2]]
    low, high = _extent(ys if plot.notes is None else [*ys, 0.0])
    if plot.notes is not None and low == 0:
        low = -0.06 * high
    if any(mark.baseline for mark in marks):  # room for it at its edge
        room = 0.12 * (high - low)
        low, high = (low, high + room) if plot.best == "up" else (low - room, high)
    y = _Scale(low, high, plot.base if plot.notes is None else plot.base - 15, TOP)
    right = _right(plot, _extent(xs, 0.04))
    x = _Scale(*_extent(xs, 0.04), LEFT, right)
    parts = [_axes(plot, x, y, right)]
    if plot.notes is not None:
        parts.append(f'<path class="zero" d="M{LEFT} {y(0):.1f}H{right:.0f}"/>')
    if plot.front is not None and len(plot.front[0]):
        parts.append(f'<path class="front" d="{_path(x, y, *plot.front)}"/>')
    for one in plot.series:
        if one.band is not None and np.isfinite(one.band[1]).all() and len(one.band[0]) > 1:
            there = _path(x, y, one.band[0], one.band[2])
            back = _path(x, y, one.band[0][::-1], one.band[1][::-1]).replace("M", "L", 1)
            parts.append(f'<path class="band {coloured(one.colour)}" d="{there}{back}Z"/>')
    for one in plot.series:
        place = one.colour % SERIES
        inside = []
        if one.line is not None and len(one.line[0]) > 1:
            inside.append(f'<path class="curve" d="{_path(x, y, *one.line)}"/>')
        for mark in one.marks:
            aside = _aside(plot, one, mark, x) if plot.apart else 0.0
            if not mark.baseline and not math.isfinite(mark.y):
                continue
            kind, height = "point", y(mark.y)
            if mark.baseline:
                kind, height = "point baseline", TOP + 6.0 if plot.best == "up" else plot.base - 8.0
                inside.append(_beside_mark(x(mark.x) + aside, height, right))
            inside.append(f'<g class="{kind}"><title>{html.escape(mark.said)}</title>{_whiskers(mark, x, y, aside)}')
            inside.append(f"{_shape(SHAPES[place], x(mark.x) + aside, height)}</g>")
        parts.append(f'<g class="{coloured(one.colour)}">{"".join(inside)}</g>')
    for text, height in zip(plot.notes or (), (TOP - 3, plot.base - 5), strict=False):
        parts.append(f'<text class="note" x="{LEFT + 4}" y="{height}">{html.escape(text)}</text>')
    parts.append(_labels(plot, x, y))
    named = f' id="{identity}"' if identity else ""
    space = ' xmlns="http://www.w3.org/2000/svg"' if own else ""
    style = f"<style>{OWN_STYLE}</style>" if own else ""
    said = html.escape(plot.title)
    return (
        f'<svg class="plot"{named}{space} viewBox="0 0 {plot.size[0]} {plot.size[1]}" role="img" '
        f'aria-label="{said}. {html.escape(plot.described)}">{style}<title>{said}</title>{"".join(parts)}</svg>'
    )


def _beside_mark(at: float, height: float, right: float) -> str:
    """The word at the baseline's mark, on the side that has room for it."""
    behind = at + 8 + 8 * LETTER <= right
    place = f'x="{at + 8:.1f}"' if behind else f'x="{at - 8:.1f}" text-anchor="end"'
    return f'<text class="note" {place} y="{height + 4:.1f}">baseline</text>'


def _aside(plot: Plot, own: Series, mark: Mark, x: _Scale) -> float:
    """How far a mark is moved sideways: not at all where no other series has one at its x."""
    sharing = [one for one in plot.series if any(abs(x(other.x) - x(mark.x)) < 2 for other in one.marks)]
    place = next(number for number, one in enumerate(sharing) if one is own)
    return 10.0 * (place - (len(sharing) - 1) / 2)


def _path(x: _Scale, y: _Scale, xs: Floats, ys: Floats) -> str:
    return "M" + "L".join(f"{x(float(a)):.1f} {y(float(b)):.1f}" for a, b in zip(xs, ys, strict=True))


def _whiskers(mark: Mark, x: _Scale, y: _Scale, aside: float) -> str:
    found = ""
    if math.isfinite(mark.low) and math.isfinite(mark.high):
        found += f'<path class="whisker" d="M{x(mark.x) + aside:.1f} {y(mark.low):.1f}V{y(mark.high):.1f}"/>'
    if math.isfinite(mark.left) and math.isfinite(mark.right):
        found += f'<path class="whisker" d="M{x(mark.left):.1f} {y(mark.y):.1f}H{x(mark.right):.1f}"/>'
    return found


def _axes(plot: Plot, x: _Scale, y: _Scale, right: float) -> str:
    parts = []
    upward = ticks(y.low, y.high, 6 if plot.size == (WIDTH, HEIGHT) else 3)
    sideward = ticks(x.low, x.high, 6 if right > 300 else 4)
    for value in upward:
        at = y(value)
        parts.append(f'<path class="grid" d="M{LEFT} {at:.1f}H{right:.0f}"/>')
        parts.append(
            f'<text class="tick" x="{LEFT - 6}" y="{at + 3.8:.1f}" text-anchor="end">{shown(value, upward)}</text>'
        )
    base = plot.base
    parts.append(f'<path class="axis" d="M{LEFT} {base}H{right:.0f}"/>')
    for value in sideward:
        at = x(value)
        parts.append(f'<path class="axis" d="M{at:.1f} {base}v4"/>')
        parts.append(
            f'<text class="tick" x="{at:.1f}" y="{base + 16}" text-anchor="middle">{shown(value, sideward)}</text>'
        )
    middle, foot = (LEFT + right) / 2, plot.size[1] - 8
    parts.append(f'<text x="{middle:.0f}" y="{foot}" text-anchor="middle">{html.escape(plot.across)}</text>')
    return "".join(parts)


def _end(one: Series) -> tuple[float, float] | None:
    """Where a series ends on the right."""
    if one.line is not None and len(one.line[0]):
        last = int(np.argmax(one.line[0]))
        return float(one.line[0][last]), float(one.line[1][last])
    if known := [mark for mark in one.marks if math.isfinite(mark.y)]:
        mark = max(known, key=lambda mark: mark.x)
        return mark.x, mark.y
    return None


def _cut(label: str) -> str:
    return label if len(label) <= LONGEST else label[: LONGEST - 1] + "…"


def _right(plot: Plot, extent: tuple[float, float]) -> float:
    """Where the x axis ends, so that every label has room behind the end of its series."""
    right = plot.size[0] - 12.0
    for one in plot.series:
        end = _end(one)
        if one.label and end is not None:
            share = (end[0] - extent[0]) / (extent[1] - extent[0])
            room = len(_cut(one.label)) * LETTER + 12
            # LEFT + share * (right - LEFT) + room <= width
            right = min(right, LEFT + (plot.size[0] - room - LEFT) / max(share, 1e-9))
    return max(right, LEFT + 120.0)


def _labels(plot: Plot, x: _Scale, y: _Scale) -> str:
    """A label behind the end of each series; those that would lie on one another are moved apart."""
    wanted = []
    for one in plot.series:
        end = _end(one)
        if one.label and end is not None:
            wanted.append((y(end[1]), x(end[0]), _cut(one.label), one))
    wanted.sort(key=lambda each: each[0])
    heights = [each[0] for each in wanted]
    for _ in range(60):
        for a in range(len(heights)):
            for b in range(a + 1, len(heights)):
                first, second = wanted[a], wanted[b]
                beside = first[1] + len(first[2]) * LETTER < second[1] or second[1] + len(second[2]) * LETTER < first[1]
                short = 14 - abs(heights[b] - heights[a])
                if short > 0 and not beside:
                    up, down = (a, b) if heights[a] <= heights[b] else (b, a)
                    heights[up] -= short / 2
                    heights[down] += short / 2
        heights = [min(max(height, TOP + 4), plot.base - 3) for height in heights]
    return "".join(
        f'<text class="name {coloured(one.colour)}" x="{end + 9:.1f}" y="{height + 4:.1f}"><title>'
        f"{html.escape(one.label)}</title>{html.escape(text)}</text>"
        for height, (_, end, text, one) in zip(heights, wanted, strict=True)
    )
