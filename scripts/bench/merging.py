"""Token merging: what a pass of the network takes with tokens merged, over the plain pass, by size and ratio."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import click
import torch

from ...guidance.query import PromptEdit
from ...guidance.rules.tome import KIND
from ...pipelines.edits import architecture, own_pass
from .table import Row
from .timing import interleaved

SIZES = (32, 64)
"""Height and width of the latents: pictures of 256 and 512 pixels with Stable Diffusion 1.5's decoder."""
RATIOS = (0.25, 0.5, 0.75)
WHAT = "a merged pass"


class Pass:
    """Passes of a UNet over one random sample.

    Args:
        unet: the network.
        size: height and width of the latents.
    """

    def __init__(self, unet: Any, size: int) -> None:
        generator = torch.Generator().manual_seed(0)
        config, found = unet.config, next(unet.parameters())

        def drawn(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator).to(found.device, found.dtype)

        self.unet, self.found = unet, architecture(unet)
        self.given = (drawn(1, config.in_channels, size, size), 500, drawn(1, 77, config.cross_attention_dim))
        self.maps = torch.rand(1, 2, size, size, generator=generator).to(found.device)

    @property
    def blocks(self) -> str:
        """The names of the blocks that merge."""
        return self.found.finest

    def plain(self) -> None:
        """The network as it is."""
        with torch.no_grad():
            self.unet(*self.given)

    def merged(self, ratio: float) -> Callable[[], None]:
        """The network with tokens merged by importance."""
        edit = PromptEdit(KIND, (ratio, 1.0), shared=True)

        def run() -> None:
            with own_pass(self.unet, [edit], 1, {}, self.found, {edit: self.maps}):
                self.plain()

        return run


def report(pipe: Any, name: str, repeats: int, clock: Callable[[], float], sizes: Sequence[int] = ()) -> list[Row]:
    """Print and return the time of a merged pass over the plain one's."""
    rows: list[Row] = []
    for size in sizes or SIZES:
        one = Pass(pipe.unet, size)
        what = f"{WHAT} of {name}, latents of {size}x{size}, over the plain pass"
        click.echo(
            f"{what}: tokens merged in {one.blocks}, {torch.get_num_threads()} threads, median of {repeats} (smallest "
            "to largest)"
        )
        sides = {f"ratio {ratio:g}": one.merged(ratio) for ratio in RATIOS}
        for (label, timing), ratio in zip(interleaved(one.plain, sides, repeats, clock).items(), RATIOS, strict=True):
            rows.append(Row(what, label, f"tome(cfg(4), {ratio:g})", 1, timing, 1.0))
            click.echo(rows[-1].line())
    return rows
