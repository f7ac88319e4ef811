"""The picture of a frontier: likeness over cost."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .. import plots
from ..plots import INK, LIGHT
from .goal import likeness

MANY = 40  # points, above which intervals would hide them
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Line:
    """The look of one group of points in the plot.

    Args:
        group: of the frontier's file.
        label: in the legend; ``{}`` is the reference, or the first point's stack where `named`.
        style: of the marks, as matplotlib writes it; with a line where it has one.
        colour: of all of it.
        named: whether the label names a stack.
    """

    group: str
    label: str
    style: str
    colour: str
    named: bool = False


LINES = (
    Line("tried", "tried, on training prompts", "o", INK["soft"]),
    Line("frontier", "frontier of these", "o-", LIGHT[0]),
    Line("fewer_steps", "{} in fewer steps", "s--", LIGHT[1]),
    Line("wanted", "{}", "D", INK["ink"], named=True),
    Line("held_out", "chosen, on held-out prompts", "*", LIGHT[4]),
)


def figure(told: Mapping[str, Any], kind: str = "svg", title: str | None = None, metric: str | None = None) -> bytes:
    """Likeness over evaluations, on a logarithmic axis where it is a distance.

    Args:
        told: a frontier, as its JSON file has it.
        kind: svg or png.
        title: of the figure; says what the likeness is to by default.
        metric: the likeness; that of the goal by default.
    """
    metric = metric or str(told["metric"])
    run = f"{told['steps']} steps of {told['sampler']}, {told['evaluations']} evaluations"
    whole = title or f"Likeness to {told['reference']} in {run}"
    with plots.look():
        picture = plots.figure(520, 330)
        axes = picture.add_subplot()
        for line in LINES:
            rows = told.get(line.group) or []
            rows = rows[:1] if line.group == "held_out" else rows  # the others are there to compare with
            _drawn(axes, line, rows, metric, str(told["reference"]))
        if likeness(metric).better == "down":
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")  # matplotlib's own writes powers as mathematics, which is off here
        axes.set_xlabel("network evaluations of an image")
        axes.set_ylabel(str(told["names"][metric]).replace("[", "\n["))
        axes.set_title(textwrap.fill(whole, 76), loc="left")
        picture.legend(loc="outside lower center", ncols=2)
        return plots.figure_bytes(picture, whole, kind)


def _drawn(axes: Any, line: Line, rows: Sequence[Row], metric: str, reference: str) -> None:
    shown = [row for row in rows if row["stack"] != reference or row[metric] != row[f"{metric}_high"]]
    if not shown:  # the reference itself is its own equal, for which there is no place on a logarithmic axis
        return
    costs, values = [row["evaluations"] for row in shown], [row[metric] for row in shown]
    label = line.label.format(shown[0]["stack"] if line.named else reference)
    size = 11 if line.style == "*" else 4
    faint = 0.4 if line.group == "tried" else 1.0
    axes.plot(costs, values, line.style, color=line.colour, label=label, markersize=size, linewidth=1.2, alpha=faint)
    if len(shown) <= MANY and line.group != "tried":
        lows, highs = ([row[f"{metric}_{end}"] for row in shown] for end in ("low", "high"))
        axes.vlines(costs, lows, highs, color=line.colour, alpha=0.5)
