"""Plots as SVG that takes its colours from CSS variables: light and dark, on the page and as files of their own."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

WIDTH, HEIGHT = 380, 290
TOP, BOTTOM, LEFT = 14, 42, 50
LETTER = 6.1  # width of a letter at 11.5 px, about
LONGEST = 17  # letters of a direct label
SERIES = 8
SHAPES = ("circle", "square", "triangle", "diamond", "down", "plus", "star", "cross")

# Okabe and Ito's palette, without its yellow, which white does not show; lighter ones for dark.
LIGHT = ("#0072B2", "#D55E00", "#009E73", "#AA4C87", "#B57B00", "#3B8FC4", "#5B5B5B", "#8C3B00")
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
.plot .whisker { stroke: var(--c); stroke-width: 1.2; stroke-opacity: .55; }
.plot .mark { fill: var(--paper); stroke: var(--c); stroke-width: 1.8; }
.plot .front { fill: none; stroke: var(--soft); stroke-width: 1.2; stroke-dasharray: 3 3; }
.plot .name { fill: var(--c); font-weight: 600; }
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
    """

    x: float
    y: float
    low: float = math.nan
    high: float = math.nan
    left: float = math.nan
    right: float = math.nan
    said: str = ""


@dataclass(frozen=True)
class Series:
    """What is drawn in one colour.

    Args:
        name: of the method.
        colour: its place in the palette.
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
    """

    title: str
    across: str
    up: str
    series: Sequence[Series]
    front: tuple[Floats, Floats] | None = None
    described: str = ""
    notes: Sequence[str] = field(default_factory=tuple)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers from `low` to `high`, about so many.

    >>> ticks(0.0, 1.0), ticks(3.1, 3.35)
    ([0.0, 0.2, 0.4, 0.6, 0.8, 1.0], [3.1, 3.15, 3.2, 3.25, 3.3, 3.35])
    """
    if not high > low:
        return [low]
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.99)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(place * step, 12) for place in range(first, last + 1)]


def shown(value: float, among: Sequence[float] = ()) -> str:
    """A tick's text: as many digits as tell it from its neighbours."""
    step = min((b - a for a, b in zip(among, among[1:])), default=abs(value) or 1.0)
    digits = max(0, -math.floor(math.log10(step) + 1e-9)) if step > 0 else 0
    if digits and len(among) > 1 and any(abs(one * 10**digits - round(one * 10**digits)) > 1e-6 for one in among):
        digits += 1
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
    longest = max((min(len(one.label), LONGEST) for one in plot.series), default=0)
    right = WIDTH - 12 - (longest * LETTER + 8 if longest else 0)
    x, y = _Scale(*_extent(xs, 0.04), LEFT, right), _Scale(*_extent(ys), HEIGHT - BOTTOM, TOP)
    parts = [_axes(plot, x, y, right)]
    if plot.front is not None and len(plot.front[0]):
        parts.append(f'<path class="front" d="{_path(x, y, *plot.front)}"/>')
    for one in plot.series:
        if one.band is not None and np.isfinite(one.band[1]).all() and len(one.band[0]) > 1:
            there = _path(x, y, one.band[0], one.band[2])
            back = _path(x, y, one.band[0][::-1], one.band[1][::-1]).replace("M", "L", 1)
            parts.append(f'<path class="band s{one.colour % SERIES}" d="{there}{back}Z"/>')
    for one in plot.series:
        place = one.colour % SERIES
        inside = []
        if one.line is not None and len(one.line[0]) > 1:
            inside.append(f'<path class="curve" d="{_path(x, y, *one.line)}"/>')
        for mark in one.marks:
            inside.append(f"<g><title>{html.escape(mark.said)}</title>{_whiskers(mark, x, y)}")
            inside.append(f"{_shape(SHAPES[place], x(mark.x), y(mark.y))}</g>")
        parts.append(f'<g class="s{place}">{"".join(inside)}</g>')
    parts.append(_labels(plot, x, y, right))
    named = f' id="{identity}"' if identity else ""
    space = ' xmlns="http://www.w3.org/2000/svg"' if own else ""
    style = f"<style>{OWN_STYLE}</style>" if own else ""
    said = html.escape(plot.title)
    return (
        f'<svg class="plot"{named}{space} viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{said}. {html.escape(plot.described)}">{style}<title>{said}</title>{"".join(parts)}</svg>'
    )


def _path(x: _Scale, y: _Scale, xs: Floats, ys: Floats) -> str:
    return "M" + "L".join(f"{x(float(a)):.1f} {y(float(b)):.1f}" for a, b in zip(xs, ys, strict=True))


def _whiskers(mark: Mark, x: _Scale, y: _Scale) -> str:
    found = ""
    if math.isfinite(mark.low) and math.isfinite(mark.high):
        found += f'<path class="whisker" d="M{x(mark.x):.1f} {y(mark.low):.1f}V{y(mark.high):.1f}"/>'
    if math.isfinite(mark.left) and math.isfinite(mark.right):
        found += f'<path class="whisker" d="M{x(mark.left):.1f} {y(mark.y):.1f}H{x(mark.right):.1f}"/>'
    return found


def _axes(plot: Plot, x: _Scale, y: _Scale, right: float) -> str:
    parts = []
    upward, sideward = ticks(y.low, y.high), ticks(x.low, x.high, 5 if right > 260 else 4)
    for value in upward:
        at = y(value)
        parts.append(f'<path class="grid" d="M{LEFT} {at:.1f}H{right:.0f}"/>')
        parts.append(
            f'<text class="tick" x="{LEFT - 6}" y="{at + 3.8:.1f}" text-anchor="end">{shown(value, upward)}</text>'
        )
    base = HEIGHT - BOTTOM
    parts.append(f'<path class="axis" d="M{LEFT} {base}H{right:.0f}"/>')
    for value in sideward:
        at = x(value)
        parts.append(f'<path class="axis" d="M{at:.1f} {base}v4"/>')
        parts.append(
            f'<text class="tick" x="{at:.1f}" y="{base + 16}" text-anchor="middle">{shown(value, sideward)}</text>'
        )
    middle = (LEFT + right) / 2
    parts.append(f'<text x="{middle:.0f}" y="{HEIGHT - 8}" text-anchor="middle">{html.escape(plot.across)}</text>')
    return "".join(parts)


def _labels(plot: Plot, x: _Scale, y: _Scale, right: float) -> str:
    """A label at the right end of each series; those that would lie on one another are moved apart."""
    wanted = []
    for one in plot.series:
        if not one.label:
            continue
        if one.line is not None and len(one.line[0]):
            last = int(np.argmax(one.line[0]))
            end, height = float(one.line[0][last]), float(one.line[1][last])
        elif one.marks:
            mark = max(one.marks, key=lambda mark: mark.x)
            end, height = mark.x, mark.y
        else:
            continue
        text = one.label if len(one.label) <= LONGEST else one.label[: LONGEST - 1] + "…"
        wanted.append([y(height), x(end), text, one.label, one.colour % SERIES])
    wanted.sort(key=lambda one: float(one[0]))
    heights = [float(one[0]) for one in wanted]
    for _ in range(60):
        for a in range(len(heights) - 1):
            short = 14 - (heights[a + 1] - heights[a])
            if short > 0:
                heights[a] -= short / 2
                heights[a + 1] += short / 2
        heights = [min(max(height, TOP + 4), HEIGHT - BOTTOM - 2) for height in heights]
    parts = []
    for height, (own, end, text, whole, place) in zip(heights, wanted, strict=True):
        lead = right + 2
        if lead - float(end) > 14:  # from where the curve ends to where its name stands
            parts.append(
                f'<path class="thin s{place}" d="M{float(end) + 7:.1f} {float(own):.1f}L{lead:.1f} {height:.1f}"/>'
            )
        parts.append(
            f'<text class="name s{place}" x="{right + 6:.0f}" y="{height + 4:.1f}"><title>{html.escape(str(whole))}'
            f"</title>{html.escape(str(text))}</text>"
        )
    return "".join(parts)
