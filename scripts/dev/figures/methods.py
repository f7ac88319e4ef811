"""A labelled picture of each method on the bundled model, beside what it is to be compared with."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import click
from PIL import Image

from ....guidance.errors import InputError, nearest
from ....guidance.notation.presets import as_stack
from ....guidance.rule import models_of
from ....pipelines import guide
from ....pipelines.models.files import grid, make_folder, write
from ....pipelines.models.loading import load
from ....pipelines.second import BUNDLED
from ....samplers.noise import generators, seeded
from ...options import notices
from .shared import OneLine, contrast, fill, sampled, saturation
from .specs import FIGURES, Figure, Row


@dataclass(frozen=True)
class Made:
    """An image, and its network evaluations."""

    image: Image.Image
    evaluations: int

    def caption(self, under: str) -> str:
        """The line under an image: its network evaluations."""
        if under == "evaluations":
            return f"{self.evaluations} evaluations"
        return f"sat {saturation(self.image):.2f} con {contrast(self.image):.2f}" if under == "looks" else ""


def row(pipe: Any, figure: Figure, which: Row, weak: Any = BUNDLED) -> list[Made]:
    """The images of one row, in one batch, each with a seed of its own; `weak` is the weak network, for who asks it."""
    seeds = [figure.seed + column for column in range(len(figure.cases))]
    networks = dict.fromkeys(models_of(as_stack(which.stack)), weak)
    guided = guide(pipe, which.stack, networks=networks)
    negatives = {"negative_prompt": [case.negative for case in figure.cases]} if which.negative else {}
    with seeded(pipe.scheduler, seeds):
        prompts = [case.prompt for case in figure.cases]
        made = guided(prompts, num_inference_steps=figure.steps, generator=generators(seeds), **negatives).images
    assert guided.report is not None  # a call leaves one
    return [Made(image, count) for image, count in zip(made, guided.report.evaluations, strict=True)]


@dataclass(frozen=True)
class Means:
    """Numbers of a row: means over its images."""

    label: str
    evaluations: float
    saturation: float
    contrast: float

    @classmethod
    def of(cls, label: str, made: Sequence[Made]) -> Means:
        """The means over the images of a row."""
        images = [one.image for one in made]
        return cls(
            label,
            mean(one.evaluations for one in made),
            mean(map(saturation, images)),
            mean(map(contrast, images)),
        )

    def line(self) -> str:
        """The means as a line for the terminal."""
        return (
            f"  {self.label:<48} {self.evaluations:6.1f} evaluations, saturation {self.saturation:.3f}, "
            f"contrast {self.contrast:.3f}"
        )

    def cells(self) -> str:
        """The means as cells of the page's table; a bar in the label would end its cell."""
        label = self.label.replace("|", "\\|")
        return f"| `{label}` | {self.evaluations:.3g} | {self.saturation:.3f} | {self.contrast:.3f} |"


HEAD = "| | evaluations | saturation | contrast |\n|---|---|---|---|\n"


def draw(
    pipe: Any, figure: Figure, known: dict[tuple[Figure, Row], list[Made]] | None = None, weak: Any = BUNDLED
) -> tuple[Image.Image, list[Means]]:
    """The figure, and the numbers of each of its rows.

    Args:
        pipe: a pipeline with prompts, left as it was.
        figure: what to show.
        known: rows of other figures, which are not made again; those of this one are added.
        weak: the weak network.
    """
    known = {} if known is None else known
    alike = dataclasses.replace(figure, rows=(), under="")
    with sampled(pipe, figure.sampler):
        for which in figure.rows:
            if (alike, which) not in known:
                known[alike, which] = row(pipe, figure, which, weak)
        table = [known[alike, which] for which in figure.rows]
    labels = [which.label for which in figure.rows]
    picture = grid(
        [[one.image for one in made] for made in table],
        labels,
        [case.label for case in figure.cases],
        captions=[[one.caption(figure.under) for one in made] for made in table] if figure.under else None,
    )
    return picture, [Means.of(label, made) for label, made in zip(labels, table, strict=True)]


@click.command(
    cls=OneLine,
    help="Draw the figures of docs/methods.md. The numbers of each row, means over its images, are printed, and put "
    "into the page beside the folder.",
)
@click.option("--only", metavar="NAME", multiple=True, help=f"Only these of {', '.join(FIGURES)}.")
@click.option("--to", type=click.Path(path_type=Path), default=Path("docs/methods"), show_default=True, help="Folder.")
@click.option("--model", metavar="PATH", help="Model folder.  [default: the bundled emoji model]")
def main(only: tuple[str, ...], to: Path, model: str | None) -> None:
    """Draw the figures of docs/methods.md and fill in its tables."""
    for name in only:
        if name not in FIGURES:
            raise InputError(f"no figure {name!r}{nearest(name, FIGURES)}")
    import torch

    with notices():
        pipe, _ = load(model, torch.float32, "cpu")
        make_folder(to)
        known: dict[tuple[Figure, Row], list[Made]] = {}
        for name in only or FIGURES:
            figure = FIGURES[name]
            picture, means = draw(pipe, figure, known)
            write(picture, to / f"{name}.png")
            fill(to.with_suffix(".md"), name, HEAD + "".join(one.cells() + "\n" for one in means))
            click.echo(f"{to / name}.png: {figure.sampler}, {figure.steps} steps")
            click.echo("\n".join(one.line() for one in means))
