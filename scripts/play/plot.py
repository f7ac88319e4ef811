"""The small plot beside an image: how hard each step was guided."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.ticker import MaxNLocator

from ...evaluation.plots import DARK, DARK_INK, INK, LIGHT, figure, look, to_svg, variables

WIDTH, HEIGHT = 260, 140  # pixels
STYLE = f"""
.plot {{ {variables(LIGHT, INK)} width: 100%; height: auto; }}
.body--dark .plot {{ {variables(DARK, DARK_INK)} }}
"""
"""The colours of the plot, in light and in dark."""


def plot_of(scales: Sequence[float], series: int = 0) -> str:
    """The effective scale over the steps, as an SVG element.

    Args:
        scales: one for each step, NaN where there is none.
        series: which of the colours.
    """
    with look(f"play{series}"):
        made = figure(WIDTH, HEIGHT)
        axes = made.add_subplot()
        steps = range(1, len(scales) + 1)
        axes.plot(steps, scales, color=LIGHT[series % len(LIGHT)], marker="o", markersize=3)
        known = [one for one in scales if math.isfinite(one)]
        axes.set_ylim(min([0, *known]) * 1.08, max([2, *known]) * 1.08)
        axes.set_xlim(0.5, len(scales) + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("step")
        axes.set_ylabel("effective scale")
        told = f"from {min(known):.3g} to {max(known):.3g}" if known else "not known at any step"
        return to_svg(made, "Effective scale over the steps", told)
