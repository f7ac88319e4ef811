"""Edits of the network: what a perturbed pass takes beside one evaluation, over the plain pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click
import torch

from ...guidance.query import Perturbation
from ...pipelines import edits
from .merging import Pass
from .table import Row
from .timing import interleaved

WHAT = "a perturbed pass"
LIMIT = 1.01
"""What a perturbed pass is not to exceed, over the plain one."""
SIZES = {"bundled": 16}
"""Height and width of the latents of models other than of Stable Diffusion's shape, which has `SIZE`."""
SIZE = 32
PERTURBATIONS = {
    "pag(3)": Perturbation("identity", 1.0),
    "seg(3)": Perturbation("blur", float("inf")),
    "slg(3, 'mid')": Perturbation("skip", 1.0, "mid"),
    "tpg(3)": Perturbation("shuffle", 1.0),
    "s2(0.25)": Perturbation("drop", 0.1),
    "sg(3)": Perturbation("shift", 10.0),
    "tsg(3)": Perturbation("time", 1.0),
}
"""The edits, each with a rule whose second evaluation it is."""


def perturbed(one: Pass, perturbation: Perturbation) -> Callable[[], None]:
    """A pass with an edit, as a rule asks for it."""

    def run() -> None:
        with edits.edited(one.unet, perturbation, [torch.Generator().manual_seed(0)], one.found):
            one.plain()

    return run


def report(pipe: Any, name: str, repeats: int, clock: Callable[[], float]) -> list[Row]:
    """Print and return the time of a perturbed pass over the plain one's, for each edit."""
    size = SIZES.get(name, SIZE)
    one = Pass(pipe.unet, size)
    what = f"{WHAT} of {name}, latents of {size}x{size}, over the plain pass"
    click.echo(f"{what}: {torch.get_num_threads()} threads, median of {repeats} (smallest to largest)")
    sides = {stack: perturbed(one, perturbation) for stack, perturbation in PERTURBATIONS.items()}
    rows = []
    for stack, timing in interleaved(one.plain, sides, repeats, clock).items():
        rows.append(Row(what, PERTURBATIONS[stack].kind, stack, 1, timing, LIMIT))
        click.echo(rows[-1].line())
    return rows
