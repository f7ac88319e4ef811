"""Steering by objectives: what a step costs over its passes, without gradients through the denoiser, and in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click
import torch
from torch import Tensor

from ...guidance.notation.objectives import objectives
from ...pipelines import guide
from ...pipelines.decoding import decoded
from ...samplers import by_name
from ...samplers.noise import generators
from .memory import peak
from .models import bundled, shaped
from .table import Row
from .timing import interleaved

PROMPT = "rocket, flat style, black background"
THROUGH, CLEAN, PICTURES = "tfg('near', rho=1)", "cfg(4) | tfg('near', mu=1)", "cfg(4) | tfg('blue', mu=1)"
AGAINST = "cfg(4)"
PASSES, GUIDED = "steering over its forward and backward passes", "steering over cfg(4)"
LIMITS = {PASSES: 1.05, GUIDED: 1.15}


def near(x0: Tensor) -> Tensor:
    """An objective of latents that costs next to nothing."""
    return -x0.square().flatten(1).sum(1)


near.space = "latents"  # type: ignore[attr-defined]


class Bench:
    """Runs of one pipeline, whose weights need no gradients.

    Args:
        pipe: the pipeline; it gets DDIM.
        batch: images of a run.
        steps: of a run.
    """

    def __init__(self, pipe: Any, batch: int, steps: int) -> None:
        self.pipe, self.batch, self.steps = pipe, batch, steps
        pipe.scheduler = by_name("ddim", pipe.scheduler)
        pipe.unet.requires_grad_(False)
        pipe.vae.requires_grad_(False)

    def guided(self, stack: str, steps: int | None = None) -> Callable[[], Any]:
        """A run under a stack."""
        call = guide(self.pipe, stack, objectives={"near": near})
        given: dict[str, Any] = {"num_inference_steps": steps or self.steps, "output_type": "latent"}
        return lambda: call([PROMPT] * self.batch, generator=generators(range(self.batch)), **given)

    def passes(self, steps: int | None = None) -> Callable[[], None]:
        """The text encoder's pass of such a run, and the network's: a forward and a backward one a step."""
        config = self.pipe.unet.config
        shape = (self.batch, config.in_channels, config.sample_size, config.sample_size)
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0))

        def run() -> None:
            with torch.no_grad():
                text = self.pipe.encode_prompt([PROMPT] * self.batch, "cpu", 1, False)[0]
            for _ in range(steps or self.steps):
                with torch.enable_grad():
                    point = x.detach().requires_grad_()
                    answer = self.pipe.unet(point, 500, encoder_hidden_states=text, return_dict=False)[0]
                torch.autograd.grad(answer, point, x)

        return run

    def objective(self) -> Callable[[], None]:
        """What the objective of pictures itself takes in such a run, with the decoder, forwards and backwards."""
        bound = objectives(decode=lambda x0: decoded(self.pipe, None, x0)).find("blue")
        side = self.pipe.unet.config.sample_size
        x0 = torch.randn(self.batch, self.pipe.unet.config.in_channels, side, side)

        def run() -> None:
            for _ in range(self.steps):
                bound.gradient(x0)

        return run


def timed(pipe: Any, name: str, batch: int, steps: int, repeats: int, clock: Callable[[], float]) -> list[Row]:
    """Print and return what steering takes over the passes it is made of, and over CFG."""
    bench, rows = Bench(pipe, batch, steps), list[Row]()
    click.echo(f"{name}, batch {batch}, {steps} steps, {torch.get_num_threads()} threads, median of {repeats}")
    own = "the objective itself"
    through = interleaved(bench.passes(), {THROUGH: bench.guided(THROUGH)}, repeats, clock)
    sides = {CLEAN: bench.guided(CLEAN), PICTURES: bench.guided(PICTURES), own: bench.objective()}
    clean = interleaved(bench.guided(AGAINST), sides, repeats, clock)
    for what, stack, timing in ((PASSES, THROUGH, through[THROUGH]), (GUIDED, CLEAN, clean[CLEAN])):
        rows.append(Row(f"{what}, {name}", stack, stack, batch, timing, LIMITS[what]))
        click.echo(f"{what}: {rows[-1].line()}")
    click.echo(
        f"{GUIDED}: {PICTURES}: {clean[PICTURES].ratio}, of which the objective and the decoder {clean[own].ratio}"
    )
    return rows


def remembered(pipe: Any, name: str, steps: tuple[int, int] = (1, 3)) -> None:
    """Print the peak memory of gradients through the network, with and without checkpointing, and over the steps."""
    bench = Bench(pipe, 1, steps[0])
    for words, checkpointing in (("", False), (" with enable_gradient_checkpointing()", True)):
        if checkpointing:
            pipe.unet.enable_gradient_checkpointing()
        try:
            sizes = [peak(bench.guided(THROUGH, count)) / 2**20 for count in steps]
        finally:
            pipe.unet.disable_gradient_checkpointing()
        told = " and ".join(f"{size:.0f} MiB in {count}" for size, count in zip(sizes, steps, strict=True))
        click.echo(f"{name}, peak memory beyond the weights of {THROUGH}{words}: {told} steps")
    plain = peak(bench.guided("stack()")) / 2**20
    click.echo(f"{name}, of stack(): {plain:.0f} MiB")


def report(batch: int, steps: int, repeats: int, clock: Callable[[], float]) -> list[Row]:
    """Print the whole: the times of the bundled model, the memory of one of Stable Diffusion 1.5's shape."""
    rows = timed(bundled(), "bundled", batch, steps, repeats, clock)
    remembered(shaped(), "sd15-shaped")
    return rows
