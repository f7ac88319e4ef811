"""The measured trade between cost and likeness: points, which of them no other beats in both, and their picture."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import plots
from .. import statistics as intervals
from ..csvs import written_csv
from ..plots import INK, LIGHT
from .goal import likeness

Values = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Point:
    """The measurements of one stack.

    Args:
        stack: its text.
        steps: of the sampler.
        evaluations: network evaluations of each sample.
        likeness: of each sample by metric, as `parse_metric` reads it, in one order of samples.
        prompts: the place of each sample's prompt.
    """

    stack: str
    steps: int
    evaluations: Values
    likeness: Mapping[str, Values]
    prompts: NDArray[np.int64] = field(repr=False)

    @property
    def cost(self) -> float:
        """Mean network evaluations of a sample."""
        return float(self.evaluations.mean())

    def mean(self, metric: str) -> float:
        """Mean likeness by a metric."""
        return float(self.likeness[metric].mean())

    def interval(self, metric: str) -> tuple[float, float]:
        """The bootstrap's interval of that mean, with prompts as units."""
        return intervals.bootstrap(self.likeness[metric], self.prompts)

    def difference(self, other: Point, metric: str) -> tuple[float, float, float]:
        """Mean of the likeness less that of `other` over the same samples, and its interval."""
        away = self.likeness[metric] - other.likeness[metric]
        return float(away.mean()), *intervals.bootstrap(away, self.prompts)

    def row(self) -> dict[str, Any]:
        """The stack and its numbers, as a row of frontier.csv and frontier.json."""
        found: dict[str, Any] = {"stack": self.stack, "steps": self.steps, "evaluations": self.cost}
        for metric in self.likeness:
            low, high = self.interval(metric)
            found |= {metric: self.mean(metric), f"{metric}_low": low, f"{metric}_high": high}
        return found | {"samples": len(self.evaluations), "prompts": len(np.unique(self.prompts))}


def pareto(points: Iterable[Point], metric: str, sign: int) -> list[Point]:
    """The points that no other beats in cost and in likeness, by cost; of equal ones the first.

    Args:
        points: measured on the same samples.
        metric: the likeness.
        sign: 1 where more is more alike, -1 where less is.
    """
    return intervals.undominated(points, lambda point: (-point.cost, sign * point.mean(metric)))


def told(about: Mapping[str, Any], groups: Mapping[str, Sequence[Point]]) -> dict[str, Any]:
    """Points by group as plain numbers, with what they are of."""
    return {**about, **{name: [point.row() for point in points] for name, points in groups.items()}}


def as_json(whole: Mapping[str, Any]) -> bytes:
    """The contents of frontier.json, from what `told` returns."""
    return json.dumps(whole, indent=1, ensure_ascii=False).encode() + b"\n"


def as_csv(groups: Mapping[str, Sequence[Point]]) -> bytes:
    """Points as a table, with a column for the group."""
    rows = [{"group": name, **point.row()} for name, points in groups.items() for point in points]
    return written_csv([list(rows[0]) if rows else ["group"], *(list(row.values()) for row in rows)])


# --- the picture ---------------------------------------------------------------------------------------------------

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
