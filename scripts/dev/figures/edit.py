"""``python -m guidestack.scripts.dev.figures edit``: a picture brought back and changed, under several stacks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import click
import torch
from PIL import Image

from ....pipelines import edit, guide, invert
from ....pipelines.latents import encoded, pixels
from ....pipelines.models.files import grid, make_folder, write
from ....pipelines.models.loading import load
from ....samplers.noise import generators
from ...options import notices
from .shared import OneLine, fill, psnr, sampled
from .specs import CASES

SOURCES = tuple(case.prompt for case in CASES)
"""The pictures that are brought back; the first is shown, and changed."""
EDITS = ("fox, noto style, blue background", "cat face, noto style, red background")
MADE_BY = "cfg(4)"
SEED = 1
ROWS = (
    ("cfg(1)", "cfg(1)"),
    ("cfg(4)", "cfg(4)"),
    ("cfgpp(0.3)", "cfgpp(0.3)"),
    ("cfgpp(0.6)", "cfgpp(0.6)"),
    ("cfg(4)", "cfg(1)"),
)
"""What samples, and what inverts."""


@dataclass(frozen=True)
class Made:
    """One row of the figure: its stacks, its pictures, and its numbers.

    Args:
        guidance: text of the stack that samples.
        inversion: text of the stack that inverts.
        images: the picture brought back, and its edits.
        psnr: in dB, of the pictures brought back, a mean over them.
        evaluations: of one edit.
    """

    guidance: str
    inversion: str
    images: list[Image.Image]
    psnr: float
    evaluations: int

    @property
    def label(self) -> str:
        """The text to the left of the row: its stacks."""
        return self.guidance if self.guidance == self.inversion else f"{self.guidance}, inverted under {self.inversion}"

    def cells(self) -> str:
        """The row of the page's table."""
        return f"| `{self.guidance}` | `{self.inversion}` | {self.psnr:.1f} dB | {self.evaluations} |"


def decoded(pipe: Any, pictures: Sequence[Image.Image]) -> list[Image.Image]:
    """The pictures as the autoencoder gives them back: no inversion can do better."""
    with torch.no_grad():
        latents = encoded(pipe, pixels(list(pictures), pipe.vae_scale_factor))
        values = pipe.vae.decode(latents / pipe.vae.config.scaling_factor, return_dict=False)[0]
    found: list[Image.Image] = pipe.image_processor.postprocess(values, output_type="pil")
    return found


def row(
    pipe: Any, pictures: Sequence[Image.Image], sources: Sequence[str], stacks: tuple[str, str], steps: int
) -> Made:
    """One row: the pictures inverted once, all of them brought back, the first changed."""
    guidance, inversion = stacks
    inverted = invert(pipe, inversion)(list(sources), image=list(pictures), num_inference_steps=steps)
    guided = guide(pipe, guidance)
    back = guided(list(sources), latents=inverted.latents, num_inference_steps=steps).images
    assert guided.report is not None  # a call leaves one
    evaluations = inverted.report.evaluations[0] + guided.report.evaluations[0]
    editing = edit(pipe, guidance, inversion=inversion)
    edited = [
        editing(pictures[0], source=sources[0], prompt=prompt, num_inference_steps=steps).images[0] for prompt in EDITS
    ]
    best = decoded(pipe, pictures)
    away = mean(psnr(one, other) for one, other in zip(back, best, strict=True))
    return Made(guidance, inversion, [back[0], *edited], away, evaluations)


def draw(pipe: Any, steps: int, sources: Sequence[str] = SOURCES) -> tuple[Image.Image, list[Made]]:
    """The figure, and its rows. The pipeline is left as it was."""
    with sampled(pipe, "ddim"):
        seeds = [SEED + place for place in range(len(sources))]
        pictures = guide(pipe, MADE_BY)(list(sources), num_inference_steps=steps, generator=generators(seeds)).images
        rows = [row(pipe, pictures, sources, stacks, steps) for stacks in ROWS]
    columns = ["the picture", "brought back", *EDITS]
    return grid([[pictures[0], *one.images] for one in rows], [one.label for one in rows], columns), rows


HEAD = "| sampled under | inverted under | brought back | evaluations |\n|---|---|---|---|\n"


@click.command(
    cls=OneLine,
    help="Draw docs/edit.png: a picture inverted, brought back and changed under several stacks, with DDIM. Its "
    "numbers are printed, and put into editing.md beside it.",
)
@click.option("--out", type=click.Path(path_type=Path), default=Path("docs/edit.png"), show_default=True)
@click.option("--steps", type=click.IntRange(1, 1000), default=50, show_default=True)
@click.option("--model", metavar="PATH", help="Model folder.  [default: the bundled emoji model]")
def main(out: Path, steps: int, model: str | None) -> None:
    """Draw the figure of docs/editing.md and fill in its table."""
    with notices():
        pipe, _ = load(model, torch.float32, "cpu")
        picture, rows = draw(pipe, steps)
    make_folder(out.parent)
    write(picture, out)
    fill(out.with_name("editing.md"), "edit", HEAD + "".join(one.cells() + "\n" for one in rows))
    click.echo("\n".join([f"{out}: {steps} steps of DDIM", *(one.cells() for one in rows)]))
