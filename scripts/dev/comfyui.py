"""What guidestack's guider costs in ComfyUI, over ComfyUI's own classifier-free guidance.

On the stand-in for ComfyUI of tests/bridges, or on a real one: the same network, noise, sampler and conditions, whole
runs interleaved. `python -m guidestack.scripts.dev.comfyui --json docs/performance-comfyui.json`
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor, nn

from ..bench.cli import CLOCKS, machine, write
from ..bench.models import bundled, shaped
from ..bench.table import Row
from ..bench.timing import interleaved

FAKE = Path(__file__).parents[2] / "tests" / "bridges" / "comfyui_fake.py"
WHAT, LIMIT = "the guider in ComfyUI", 1.02
SCALE = 4.0
STACKS = ("cfg(4)", "cfg(4) | rescale(0.7)")
SIGMAS = (14.0, 5.0, 2.0, 0.8, 0.3, 0.1)
MODELS: dict[str, tuple[Callable[[], Any], int, int]] = {"bundled": (bundled, 16, 5), "sd15-shaped": (shaped, 32, 1)}
"""Pipelines whose UNet is the network: how each is made, the size of its latents, and the steps of a run."""


class Network(nn.Module):
    """A UNet of diffusers as ComfyUI calls its networks: clean samples of noisy ones."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x: Tensor, sigma: Tensor, context: Tensor) -> Tensor:
        """The clean samples that the network's noise leaves of `x`."""
        wide = sigma.reshape(-1, 1, 1, 1)
        noise: Tensor = self.unet(x / (wide**2 + 1).sqrt(), 1000 * sigma / (1 + sigma), context).sample
        return x - wide * noise


def fake() -> Any:
    """The stand-in, where `import comfy` finds it."""
    spec = importlib.util.spec_from_file_location("comfyui_fake", FAKE)
    assert spec is not None  # a file of this repository
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    module.install(lambda modules, name, one: modules.__setitem__(name, one))
    return module


class Bench:
    """Runs of one network under ComfyUI's own guider and under guidestack's.

    Args:
        unet: the network.
        size: height and width of its latents.
        steps: of a run.
    """

    def __init__(self, unet: Any, size: int, steps: int) -> None:
        import comfy.samplers

        self.comfy, module = comfy.samplers, sys.modules["comfyui_fake"]
        made: Any = module.Model(False)
        made.diffusion_model = Network(unet)
        self.patcher = module.ModelPatcher(made)
        generator = torch.Generator().manual_seed(0)
        width = unet.config.cross_attention_dim
        self.texts = [[[torch.randn(1, 77, width, generator=generator), {}]] for _ in range(2)]
        self.noise = torch.randn(1, unet.config.in_channels, size, size, generator=generator)
        self.sigmas = torch.tensor([*SIGMAS[:steps], 0.0])

    def run(self, guider: Any) -> Tensor:
        """The samples of a run."""
        sampler, latent = self.comfy.sampler_object("euler"), torch.zeros_like(self.noise)
        with torch.inference_mode():
            made: Tensor = guider.sample(self.noise, latent, sampler, self.sigmas, disable_pbar=True, seed=0)
        return made

    def own(self) -> Tensor:
        """A run under ComfyUI's own classifier-free guidance."""
        guider = self.comfy.CFGGuider(self.patcher)
        guider.set_conds(*self.texts)
        guider.set_cfg(SCALE)
        return self.run(guider)

    def ours(self, stack: str) -> Tensor:
        """A run under a stack."""
        from ...bridges.comfyui.nodes import GuidestackGuider

        positive, negative = self.texts
        return self.run(GuidestackGuider().execute(self.patcher, positive, stack, negative=negative)[0])


@click.command()
@click.option(
    "--model", "names", multiple=True, type=click.Choice(list(MODELS)), default=("bundled",), show_default=True
)
@click.option("--repeats", type=click.IntRange(1), default=7, show_default=True, help="Rounds.")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Threads of torch.")
@click.option("--clock", type=click.Choice(list(CLOCKS)), default="cpu", show_default=True, help="As of bench.")
@click.option("--json", "to", type=click.Path(path_type=Path), help="Also write the rows here.")
def main(names: tuple[str, ...], repeats: int, threads: int, clock: str, to: Path | None) -> None:
    """Measure whole runs under guidestack's guider over runs under ComfyUI's own, on the stand-in of the tests."""
    torch.set_num_threads(threads)
    fake()
    rows = []
    for name in names:
        make, size, steps = MODELS[name]
        bench = Bench(make().unet, size, steps)
        what = f"{WHAT}, {name}, {steps} step{'s' * (steps > 1)}, over its own CFG"
        click.echo(f"{what}: {threads} thread, median of {repeats} (smallest to largest)")
        assert torch.equal(bench.own(), bench.ours("cfg(4)"))
        sides = {stack: (lambda stack=stack, bench=bench: bench.ours(stack)) for stack in STACKS}
        for stack, timing in interleaved(bench.own, sides, repeats, CLOCKS[clock]).items():
            rows.append(Row(what, name, stack, 1, timing, LIMIT))
            click.echo(rows[-1].line())
    if to:
        write([row.mapping() | machine() for row in rows], to)


if __name__ == "__main__":
    main()
