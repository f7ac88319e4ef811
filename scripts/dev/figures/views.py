"""``python -m guidestack.scripts.dev.figures.views``: plot the view-dependent weights of Perp-Neg over the azimuth."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from PIL import Image

from ....guidance.errors import InputError
from ....pipelines.models.files import make_folder, write
from .view_weights import NEGATIVE_VIEWS, POSITIVE_VIEWS, VARIANTS, views

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TITLES = {
    "cutoff": '"cutoff": authors\' code, stable-dreamfusion',
    "shifted": '"shifted": threestudio, elevation up to 60°',
}
COLOURS = {"front": "#c8501e", "side": "#1f6fb4", "back": "#5f7d3a"}
INCHES, DPI = (9.0, 3.8), 100  # 900 pixels wide
TEXT = 10  # points
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
    axes.set_title(TITLES[variant], fontsize=TEXT + 1)
    axes.set_xlim(-180, 180)
    axes.set_ylim(0, 2.15)
    names = {-180: "back", -90: "side", 0: "front", 90: "side", 180: "back"}
    axes.set_xticks(
        list(names),
        [f"{angle}°\n{name}".replace("-", "\N{MINUS SIGN}") for angle, name in names.items()],
        fontsize=TEXT,
    )
    axes.tick_params(axis="y", labelsize=TEXT)
    axes.set_yticks([0, 0.5, 1, 1.5, 2])
    axes.set_xlabel("azimuth of the camera", fontsize=TEXT)
    axes.grid(axis="x", color="0.8", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def figure() -> Image.Image:
    """Both variants side by side, with one legend.

    Raises:
        InputError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError("the figures need matplotlib; install it with: pip install matplotlib") from None
    drawn = Figure(figsize=INCHES, dpi=DPI, layout="constrained")
    FigureCanvasAgg(drawn)
    panels: Any = drawn.subplots(1, len(VARIANTS), sharey=True, gridspec_kw={"wspace": 0.08})
    for axes, variant in zip(panels, VARIANTS):
        panel(axes, variant)
    panels[0].set_ylabel("weight", fontsize=TEXT)
    handles, labels = panels[0].get_legend_handles_labels()
    drawn.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=len(labels),
        columnspacing=1.0,
        handlelength=1.5,
        handletextpad=0.5,
        fontsize=TEXT,
        frameon=False,
    )
    file = io.BytesIO()
    drawn.savefig(file, format="png")
    return Image.open(file).convert("RGB").quantize(64)  # a smaller file that looks the same


@click.command(help="Plot the view-dependent weights of Perp-Neg (view_weights.py) over the azimuth.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("docs/perp-neg-views.png"), show_default=True)
def main(out: Path) -> None:
    """Write the figure."""
    try:
        make_folder(out.parent)
        write(figure(), out)
    except InputError as error:
        raise click.ClickException(str(error)) from None
    click.echo(f"{out}: {out.stat().st_size / 1024:.0f} KB")


if __name__ == "__main__":
    main()
