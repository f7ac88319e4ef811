"""Token merging: what a pass of the network takes with so many tokens merged, over the plain pass, by size and ratio."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import click
import torch

from ...guidance.query import PromptEdit
from ...guidance.rules.tome import KIND
from ...pipelines.edits import architecture, own_pass
from .timing import interleaved

SIZES = (32, 64)
"""Height and width of the latents: pictures of 256 and 512 pixels with Stable Diffusion 1.5's decoder."""
RATIOS = (0.1, 0.25, 0.5, 0.7, 0.75)


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


def report(
    pipe: Any, name: str, repeats: int, clock: Callable[[], float], sizes: Sequence[int] = ()
) -> list[dict[str, Any]]:
    """Print and return the time of a merged pass over the plain one's."""
    rows: list[dict[str, Any]] = []
    for size in sizes or SIZES:
        one = Pass(pipe.unet, size)
        click.echo(
            f"a pass of {name}, latents of {size}x{size}, {torch.get_num_threads()} threads, tokens merged in "
            f"{one.blocks}, median of {repeats}, over the plain pass (smallest to largest)"
        )
        click.echo(f"{'ratio':>5}  {'time':>24}")
        sides = {f"{ratio:g}": one.merged(ratio) for ratio in RATIOS}
        for ratio, timing in interleaved(one.plain, sides, repeats, clock).items():
            click.echo(f"{ratio:>5}  {timing.ratio!s:>24}")
            rows.append({"what": "merged pass over plain", "model": name, "size": size, "ratio": float(ratio),
                         "time_ratio": timing.ratio.median, "rounds": repeats})  # fmt: skip
    return rows
