"""The picture of a frontier: likeness over cost."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .goal import likeness

MANY = 40  # points, above which intervals would hide them
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Line:
    """Points that belong together.

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
    Line("tried", "tried, on training prompts", "o", "#c4c4c4"),
    Line("frontier", "frontier of these", "o-", "#1f6fb4"),
    Line("fewer_steps", "{} in fewer steps", "s--", "#d1495b"),
    Line("wanted", "{}", "D", "#2f2f2f", named=True),
    Line("held_out", "chosen, on held-out prompts", "*", "#e08e00"),
)


def figure(told: Mapping[str, Any], kind: str = "svg", title: str | None = None, metric: str | None = None) -> bytes:
    """Likeness over evaluations, on a logarithmic axis where it is a distance.

    Args:
        told: a frontier, as its JSON file has it.
        kind: svg or png.
        title: of the figure; says what the likeness is to by default.
        metric: the likeness; that of the goal by default.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    metric = metric or str(told["metric"])
    with plt.rc_context({"svg.hashsalt": "guidestack", "font.size": 9}):
        picture, axes = plt.subplots(figsize=(7.2, 4.6), layout="constrained")
        for line in LINES:
            rows = told.get(line.group) or []
            rows = rows[:1] if line.group == "held_out" else rows  # the others are there to compare with
            _drawn(axes, line, rows, metric, str(told["reference"]))
        if likeness(metric).better == "down":
            axes.set_yscale("log")
        axes.set_xlabel("network evaluations of an image")
        axes.set_ylabel(str(told["names"][metric]))
        whole = f"Likeness to {told['reference']} in {told['steps']} steps of {told['sampler']}"
        axes.set_title(title or f"{whole}, {told['evaluations']} evaluations", fontsize=9)
        axes.grid(alpha=0.3, which="both")
        axes.legend(fontsize=8)
        sink = io.BytesIO()
        picture.savefig(sink, format=kind, dpi=130, metadata={"Date": None} if kind == "svg" else None)
        plt.close(picture)
    return sink.getvalue()


def _drawn(axes: Any, line: Line, rows: Sequence[Row], metric: str, reference: str) -> None:
    shown = [row for row in rows if row["stack"] != reference or row[metric] != row[f"{metric}_high"]]
    if not shown:  # the reference itself is its own equal, for which there is no place on a logarithmic axis
        return
    costs, values = [row["evaluations"] for row in shown], [row[metric] for row in shown]
    label = line.label.format(shown[0]["stack"] if line.named else reference)
    size = 11 if line.style == "*" else 4
    axes.plot(costs, values, line.style, color=line.colour, label=label, markersize=size, linewidth=1.2)
    if len(shown) <= MANY and line.group != "tried":
        lows, highs = ([row[f"{metric}_{end}"] for row in shown] for end in ("low", "high"))
        axes.vlines(costs, lows, highs, color=line.colour, alpha=0.5)
