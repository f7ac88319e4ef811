"""The picture of a frontier: likeness over cost."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .frontier import Point, pareto


@dataclass(frozen=True)
class Line:
    """Points that belong together.

    Args:
        label: in the legend.
        points: those.
        style: of the marks, as matplotlib writes it; with a line where it has one.
        colour: of all of it.
    """

    label: str
    points: Sequence[Point]
    style: str
    colour: str


def figure(lines: Sequence[Line], metric: str, named: str, title: str, kind: str = "svg") -> bytes:
    """Likeness over evaluations, both on logarithmic axes where the likeness is a distance.

    Args:
        lines: what is shown, the last on top.
        metric: the likeness.
        named: its full name.
        title: of the figure.
        kind: svg or png.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with plt.rc_context({"svg.hashsalt": "guidestack", "font.size": 9}):
        picture, axes = plt.subplots(figsize=(7.2, 4.4), layout="constrained")
        for line in lines:
            _drawn(axes, line, metric)
        if all(point.mean(metric) > 0 for line in lines for point in line.points if point.mean(metric)):
            if not metric.startswith(("ssim", "psnr")):
                axes.set_yscale("log")
        axes.set_xlabel("network evaluations of an image")
        axes.set_ylabel(named if len(named) < 70 else metric)
        axes.set_title(title, fontsize=9)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
        sink = io.BytesIO()
        picture.savefig(sink, format=kind, dpi=130, metadata={"Date": None} if kind == "svg" else None)
        plt.close(picture)
    return sink.getvalue()


def _drawn(axes: Any, line: Line, metric: str) -> None:
    shown = [point for point in line.points if point.mean(metric)]  # the reference itself has no place on such an axis
    if not shown:
        return
    costs, values = [point.cost for point in shown], [point.mean(metric) for point in shown]
    axes.plot(costs, values, line.style, color=line.colour, label=line.label, markersize=4, linewidth=1.2)
    if len(shown) <= 16:
        ends = [point.interval(metric) for point in shown]
        axes.vlines(costs, [low for low, _ in ends], [high for _, high in ends], color=line.colour, alpha=0.5)


def frontier_lines(points: Sequence[Point], metric: str, sign: int) -> list[Line]:
    """Everything that was tried, and the frontier of it."""
    return [
        Line("tried", points, "o", "#c8c8c8"),
        Line("frontier", pareto(points, metric, sign), "o-", "#1f6fb4"),
    ]
