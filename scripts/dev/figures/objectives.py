"""``python -m guidestack.scripts.dev.figures objectives``: inpainting and super-resolution by several methods."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import click
import torch
from PIL import Image

from ....pipelines import guide
from ....pipelines.models.files import grid, make_folder, write
from ....pipelines.models.loading import load
from ....samplers.noise import generators
from ...options import notices
from .shared import fill, psnr, sampled

PROMPTS = ("cat face, noto style, blue background", "red heart, flat style, pink background")
MADE_BY, SEED, ANOTHER = "cfg(4)", 1, 100
FACTOR = 4
ROWS = (
    ("known", "cfg(4)"),
    ("known", "cfg(4) | tfg('known', mu=0.3)"),
    ("known", "cfg(4) | tfg('known', rho=0.3)"),
    ("known", "cfg(2) | tfg('known', rho=0.5, mu=0.5, inner=4)"),
    ("superres", f"cfg(4) | tfg('superres({FACTOR})', mu=3)"),
    ("superres", f"cfg(4) | tfg('superres({FACTOR})', rho=1)"),
    ("known", "red_diff('known')"),
    ("superres", f"red_diff('superres({FACTOR})', weight=0.05)"),
)
"""What is given, and the stack. The first row is steered by nothing."""
HEAD = "| stack | given | what is given | the whole picture | backward passes |\n|---|---|---|---|---|\n"


@dataclass(frozen=True)
class Made:
    """One row of the figure.

    Args:
        given: name of the objective.
        stack: text of the stack.
        images: for each prompt what was given, and what was made.
        fits: in dB, how near what was made is to what was given, a mean over the prompts.
        whole: in dB, how near it is to the picture that was hidden, likewise.
        backward: backward passes of the denoiser for an image.
    """

    given: str
    stack: str
    images: list[Image.Image]
    fits: float
    whole: float
    backward: int

    def cells(self) -> str:
        """The row of the page's table."""
        stack = self.stack.replace("|", "\\|")
        what = {"known": "the left half", "superres": "16 x 16 pixels"}[self.given]
        return f"| `{stack}` | {what} | {self.fits:.1f} dB | {self.whole:.1f} dB | {self.backward} |"


def half(picture: Image.Image) -> Image.Image:
    """The picture with its right half transparent."""
    left = picture.convert("RGBA")
    left.putalpha(0)
    left.paste(picture.convert("RGBA").crop((0, 0, picture.width // 2, picture.height)), (0, 0))
    return left


def smaller(picture: Image.Image) -> Image.Image:
    """The picture with squares of pixels averaged."""
    return picture.convert("RGB").resize((picture.width // FACTOR, picture.height // FACTOR), Image.Resampling.BOX)


def row(pipe: Any, pictures: list[Image.Image], kind: str, stack: str, steps: int) -> Made:
    """One row: each picture hidden and made again."""
    shown, fits, whole, backward = [], [], [], 0
    for place, (prompt, picture) in enumerate(zip(PROMPTS, pictures, strict=True)):
        given = half(picture) if kind == "known" else smaller(picture)
        guided = guide(pipe, stack, objectives={kind: given})
        image = guided(prompt, num_inference_steps=steps, generator=generators([ANOTHER + place])).images[0]
        assert guided.report is not None  # a call leaves one
        backward = sum(query.grad for record in guided.report.steps for query in record.queries)
        left = (0, 0, image.width // 2, image.height)
        near = (image.crop(left), picture.crop(left)) if kind == "known" else (smaller(image), given)
        fits.append(psnr(*near))
        whole.append(psnr(image, picture))
        grey = Image.new("RGBA", given.size, "grey")
        seen = Image.alpha_composite(grey, given.convert("RGBA")).convert("RGB")
        shown += [seen.resize(image.size, Image.Resampling.NEAREST), image]
    return Made(kind, stack, shown, mean(fits), mean(whole), backward)


def draw(pipe: Any, steps: int) -> tuple[Image.Image, list[Made]]:
    """The figure, and its rows. The pipeline is left as it was."""
    with sampled(pipe, "ddim"):
        seeds = [SEED + place for place in range(len(PROMPTS))]
        pictures = guide(pipe, MADE_BY)(list(PROMPTS), num_inference_steps=steps, generator=generators(seeds)).images
        rows = [row(pipe, pictures, kind, stack, steps) for kind, stack in ROWS]
    table = [[pictures[0], *one.images[:2], pictures[1], *one.images[2:]] for one in rows]
    return grid(table, [one.stack for one in rows], ["hidden", "given", "made"] * 2), rows


@click.command(
    help="Draw docs/objectives.png: pictures of which half is known, or which are known small, made again with DDIM. "
    "Its numbers are printed, and put into objectives.md beside it."
)
@click.option("--out", type=click.Path(path_type=Path), default=Path("docs/objectives.png"), show_default=True)
@click.option("--steps", type=click.IntRange(1, 1000), default=25, show_default=True)
def main(out: Path, steps: int) -> None:
    """Draw the figure of docs/objectives.md and fill in its table."""
    with notices():
        pipe, _ = load(None, torch.float32, "cpu")
        picture, rows = draw(pipe, steps)
    make_folder(out.parent)
    write(picture, out)
    lines = "".join(one.cells() + "\n" for one in rows)
    fill(out.with_name("objectives.md"), "objectives", HEAD + lines)
    click.echo(f"{out}: {steps} steps of DDIM\n{lines}")
