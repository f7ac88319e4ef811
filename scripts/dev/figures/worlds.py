"""Samples of the plane world under each rule, over the densities: the pictures of docs/methods.md beside the emoji."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import click
from PIL import Image

from ....evaluation.plots import to_png
from ....evaluation.world import WORLDS, draw, measured
from ....evaluation.world.claims import Cell
from ....evaluation.world.picture import Panel, picture
from ....guidance.errors import nearest
from ....guidance.files import replacing
from ...options import notices, threads_option
from .shared import OneLine

PICTURES: Mapping[str, tuple[str | Cell, ...]] = {
    "cfg": ("stack()", "cfg(2)", "cfg(4)", "cfg(8)"),
    "perpneg": (
        "cfg(2)",
        Cell(stack="cfg(0, against='null') | cfg(3)", negatives=("outer",)),
        Cell(stack="perpneg(2)", negatives=("outer",)),
        Cell(stack="perpneg(2)", positives=("outer",)),
    ),
    "apg": ("cfg(15)", "apg(15)", "apg(15, radius=0.1)", "apg(1.014, eta=1000)"),
    "cfgpp": tuple(
        Cell(stack=one, sampler="ddim", steps=50) for one in ("cfg(2)", "cfgpp(0.2)", "cfg(7.5)", "cfgpp(0.6)")
    ),
    "icg": ("cfg(1.5)", "icg(1.5, source='class')", "cfg(3)", "icg(3, source='class')"),
    "tsg": tuple(
        Cell(stack=one, condition="all", blur=1.5)
        for one in ("stack()", "tsg(2, strength=0.5)", "tsg(4, strength=0.5)")
    ),
    "during": (
        "cfg(4)",
        "during(cfg(4), sigma=(0.28, 5.42))",
        "during(cfg(4), sigma=(0, 0.28))",
        "during(cfg(4), sigma=(5.42, 1000))",
    ),
    "adaptive": ("cfg(4)", "adaptive(cfg(4), 0.99, 'denoised')", "prefix(cfg(4), 12)", Cell(stack="cfg(4)", steps=12)),
    "adg": ("cfg(4)", "adg(4)", "cfg(15)", "adg(15)"),
    "ramp": ("cfg(4)", "ramp(cfg(4))", "ramp(cfg(4), 'linear-down')"),
    "moves": (
        Cell(stack="cfg(4)", sampler="ddim", steps=50),
        Cell(stack="cfg(4)", sampler="ddpm", steps=100),
        Cell(stack="langevin(5, power=4)", sampler="ddim", steps=50),
        Cell(stack="resample(500, 4)", sampler="ddpm", steps=100),
    ),
    "weak": tuple(Cell(stack=one, blur=1.5) for one in ("stack()", "cfg(2)", "cfg(2, against='positive@weak')")),
}
"""Each picture's panels: a rule of one's own is one more line."""
LAWS = {"moves": "a^4"}
"""The laws of pictures that are not those of their first panel's condition."""
COUNT, SHOWN = 4000, ("distance", "coverage")
WORLD, USUAL = WORLDS["plane"], "a"


def panel(cell: Cell, law: str = "") -> Panel:
    """The samples of a cell, with what was measured of them: beside a law, that of the condition by default."""
    drawn = draw(WORLD, **cell.model_dump(), count=COUNT, batch=COUNT)
    shown = SHOWN[:1] if law else SHOWN  # the components of a condition, which a guided law has not
    found = measured(WORLD, drawn, cell.condition, shown, law=law, batch=COUNT)
    told = ", ".join(f"{name} {one.value:.2f}" for name, one in found.items())
    return Panel(cell.stack, drawn.x, f"{cell.condition}{cell.model_copy(update={'condition': USUAL}).beside}\n{told}")


@click.command(cls=OneLine)
@click.argument("only", nargs=-1, metavar="[PICTURE]...")
@click.option("--out", "to", type=click.Path(path_type=Path), default=Path("docs/methods"), show_default=True)
@threads_option
def main(only: tuple[str, ...], to: Path) -> None:
    """Write the pictures ONLY, all by default."""
    for name in only:
        if name not in PICTURES:
            raise click.ClickException(f"no picture {name!r}{nearest(name, PICTURES)}")
    with notices():
        for name in only or PICTURES:
            cells = [one if isinstance(one, Cell) else Cell(stack=one) for one in PICTURES[name]]
            law = LAWS.get(name, "")
            made = picture(WORLD, [panel(cell, law) for cell in cells], law or cells[0].condition)
            image = Image.open(io.BytesIO(to_png(made))).convert("RGB").quantize(64)
            with replacing(to / f"world-{name}.png") as beside:
                image.save(beside, format="PNG", optimize=True)
            click.echo(f"{to / f'world-{name}.png'}")
