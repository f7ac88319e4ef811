"""A labelled picture of each method on the bundled model, beside what it is to be compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from PIL import Image

from ...guidance.errors import InputError, nearest
from ...pipelines import guide
from ...samplers import by_name
from ...samplers.noise import generators, seeded
from ..images import grid, write
from ..model import load, notices
from .looks import contrast, saturation
from .specs import FIGURES, Figure, Row


@dataclass(frozen=True)
class Made:
    """An image, and its network evaluations."""

    image: Image.Image
    evaluations: int

    def caption(self, under: str) -> str:
        """The line under it."""
        if under == "evaluations":
            return f"{self.evaluations} evaluations"
        return f"sat {saturation(self.image):.2f} con {contrast(self.image):.2f}" if under == "looks" else ""


def row(pipe: Any, figure: Figure, which: Row) -> list[Made]:
    """The images of one row, in one batch, each with a seed of its own."""
    seeds = [figure.seed + column for column in range(len(figure.cases))]
    guided = guide(pipe, which.stack)
    negatives = {"negative_prompt": [case.negative for case in figure.cases]} if which.negative else {}
    with seeded(pipe.scheduler, seeds):
        prompts = [case.prompt for case in figure.cases]
        made = guided(prompts, num_inference_steps=figure.steps, generator=generators(seeds), **negatives).images
    assert guided.report is not None  # a call leaves one
    return [Made(image, count) for image, count in zip(made, guided.report.evaluations, strict=True)]


def summary(label: str, made: Sequence[Made]) -> str:
    """One line of numbers: means over a row."""
    count = len(made)
    return (
        f"  {label:<48} {sum(one.evaluations for one in made) / count:6.1f} evaluations, "
        f"saturation {sum(saturation(one.image) for one in made) / count:.3f}, "
        f"contrast {sum(contrast(one.image) for one in made) / count:.3f}"
    )


def draw(pipe: Any, figure: Figure) -> tuple[Image.Image, list[str]]:
    """The figure, and a line of numbers for each of its rows.

    Args:
        pipe: a pipeline with prompts, left as it was.
        figure: what to show.
    """
    own = pipe.scheduler
    try:
        pipe.scheduler = by_name(figure.sampler, own.config)
        table = [row(pipe, figure, which) for which in figure.rows]
    finally:
        pipe.scheduler = own
    labels = [which.label for which in figure.rows]
    picture = grid(
        [[one.image for one in made] for made in table],
        labels,
        [case.label for case in figure.cases],
        captions=[[one.caption(figure.under) for one in made] for made in table] if figure.under else None,
    )
    return picture, [summary(label, made) for label, made in zip(labels, table, strict=True)]


@click.command(help="Draw the figures of docs/methods.md, and print the numbers of each row: means over its images.")
@click.option("--only", metavar="NAME", multiple=True, help=f"Only these of {', '.join(FIGURES)}.")
@click.option("--to", type=click.Path(path_type=Path), default=Path("docs/methods"), show_default=True, help="Folder.")
@click.option("--model", metavar="PATH", help="Model folder.  [default: the bundled emoji model]")
def main(only: tuple[str, ...], to: Path, model: str | None) -> None:
    """Write the figures."""
    try:
        for name in only:
            if name not in FIGURES:
                raise InputError(f"no figure {name!r}{nearest(name, FIGURES)}")
        import torch

        with notices():
            pipe, _ = load(model, torch.float32, "cpu")
            for name in only or FIGURES:
                figure = FIGURES[name]
                picture, lines = draw(pipe, figure)
                write(picture, to / f"{name}.png")
                click.echo(f"{to / name}.png: {figure.sampler}, {figure.steps} steps")
                click.echo("\n".join(lines))
    except InputError as error:
        raise click.ClickException(str(error)) from None
