"""Samples over the densities of a world: guidance made visible."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..plots import INK, LIGHT, SIZE, figure, look
from .worlds import ALL, CLEAN, GuidedLaw, World

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EDGE, CELLS, WIDE, SHOWN, MOST_IN_A_ROW, LETTERS = 2.8, 200, 200, 1500, 5, 32
SHARES = (0.5, 0.9, 0.99)  # of a law's mass within its contours


@dataclass(frozen=True, eq=False)
class Panel:
    """One set of samples.

    Args:
        title: above them.
        x: samples, shape ``(N, D)``; the first 1500 are shown.
        caption: below them.
    """

    title: str
    x: Tensor
    caption: str = ""


def picture(world: World, panels: Sequence[Panel], law: str = "a") -> Figure:
    """A row of panels: the density of the data in grey, contours of a law in blue, the samples in orange.

    What lies outside of the square that is shown is drawn on its edge.

    Args:
        world: where; of more than two dimensions its plane is shown.
        panels: one to ten; more than five make a second row.
        law: whose contours, around 50, 90 and 99% of its mass, are drawn: of a condition, or a guided law as "a^3".
    """
    rows = 1 + (len(panels) - 1) // MOST_IN_A_ROW
    columns = -(-len(panels) // rows)
    along = torch.linspace(-EDGE, EDGE, CELLS, dtype=torch.float64)
    place = torch.cartesian_prod(along, along)
    flat = GuidedLaw(world.mixture, world.plane, world.weights(ALL), 1.0).flat
    data = flat.log_density(place, CLEAN, world.weights(ALL).expand(len(place), -1))
    of_data, of_law = (
        logs.exp().reshape(CELLS, CELLS).T.numpy() for logs in (data, world.law(law).log_density(place @ world.plane))
    )
    with look():
        made = figure(WIDE * columns, (WIDE + 56) * rows)
        for axes, panel in zip(made.subplots(rows, columns, squeeze=False).flat, panels, strict=False):
            axes.contourf(
                along, along, np.sqrt(of_data), levels=12, cmap="Greys", vmin=0, vmax=2.2 * np.sqrt(of_data).max()
            )
            axes.contour(
                along,
                along,
                of_law,
                levels=sorted(_level(of_law, one) for one in SHARES),
                colors=LIGHT[0],
                linewidths=0.9,
            )
            points = (panel.x[:SHOWN].double() @ world.plane.T).clamp(-EDGE, EDGE).numpy()
            axes.plot(points[:, 0], points[:, 1], "o", color=LIGHT[1], markersize=1.6, markeredgewidth=0, alpha=0.6)
            axes.set_title(textwrap.fill(panel.title, LETTERS), fontsize=SIZE - 1)
            axes.set_xlabel(panel.caption)
            axes.set(xlim=(-EDGE, EDGE), ylim=(-EDGE, EDGE), xticks=[], yticks=[], aspect="equal")
            axes.grid(visible=False)
            for side in axes.spines.values():
                side.set(visible=True, color=INK["line"])
    return made


def _level(density: np.ndarray, share: float) -> float:
    """The density around which lies this share of the mass."""
    ordered = np.sort(density.ravel())[::-1]
    return float(ordered[np.searchsorted(ordered.cumsum() / ordered.sum(), share)])
