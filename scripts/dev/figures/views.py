"""``python -m guidestack.scripts.dev.figures.views``: plot the view-dependent weights of Perp-Neg over the azimuth."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from PIL import Image

from ....evaluation import plots
from ....evaluation.plots import LIGHT
from ....pipelines.models.files import make_folder, write
from .shared import OneLine
from .view_weights import NEGATIVE_VIEWS, POSITIVE_VIEWS, VARIANTS, views

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TITLES = {
    "cutoff": '"cutoff": authors\' code, stable-dreamfusion',
    "shifted": '"shifted": threestudio, elevation up to 60°',
}
COLOURS = dict(zip(("side", "front", "back"), LIGHT, strict=False))
SIZE = (640, 280)
STEP = 0.25  # degrees between points; jumps are drawn as steep as that


def panel(axes: Axes, variant: str) -> None:
    """Draw one variant: the shares in the prompt as areas, the strengths of the negatives as lines."""
    azimuths = [-180 + STEP * n for n in range(int(360 / STEP) + 1)]
    weights = [views(azimuth, variant=variant) for azimuth in azimuths]
    for view, strengths, line in zip(NEGATIVE_VIEWS, zip(*(found.negative for found in weights)), ("-", "--")):
        axes.plot(azimuths, strengths, line, color=COLOURS[view], linewidth=2, label=f"negative: {view} view")
    for view, shares in zip(POSITIVE_VIEWS, zip(*(found.positive for found in weights))):
        axes.fill_between(
            azimuths, shares, color=COLOURS[view], alpha=0.2, linewidth=0, zorder=0, label=f"prompt: {view} view"
        )
    axes.set_title(TITLES[variant])
    axes.set_xlim(-180, 180)
    axes.set_ylim(0, 2.15)
    names = {-180: "back", -90: "side", 0: "front", 90: "side", 180: "back"}
    axes.set_xticks(
        list(names),
        [f"{angle}°\n{name}".replace("-", "\N{MINUS SIGN}") for angle, name in names.items()],
    )
    axes.set_yticks([0, 0.5, 1, 1.5, 2])
    axes.set_xlabel("azimuth of the camera")
    axes.grid(axis="x")


def figure() -> Image.Image:
    """Both variants side by side, with one legend."""
    with plots.look():
        drawn = plots.figure(*SIZE)
        panels: Any = drawn.subplots(1, len(VARIANTS), sharey=True, gridspec_kw={"wspace": 0.08})
        for axes, variant in zip(panels, VARIANTS):
            panel(axes, variant)
        panels[0].set_ylabel("weight")
        drawn.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
        # a smaller file that looks the same
        return Image.open(io.BytesIO(plots.to_png(drawn))).convert("RGB").quantize(64)


@click.command(cls=OneLine, help="Plot the view-dependent weights of Perp-Neg (view_weights.py) over the azimuth.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("docs/perp-neg-views.png"), show_default=True)
def main(out: Path) -> None:
    """Draw the figure of view-dependent weights."""
    make_folder(out.parent)
    write(figure(), out)
    click.echo(f"{out}: {out.stat().st_size / 1024:.0f} KB")


if __name__ == "__main__":
    main()
