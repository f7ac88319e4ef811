"""What guidance does to data with bounds, and what brings them back: a table for docs/inverse-problems.md.

A sample has 64 numbers in [-1, 1], each one of seven places by the weights of its class or of all data. The networks
are exact. CFG is compared with the guided law at its scale, which is known: places by the weights p_c^w p_u^(1-w).

    python -m guidestack.scripts.dev.bounded
"""

from __future__ import annotations

import click
import torch
from torch import Tensor

from ...evaluation.world.draws import BETAS
from ...guidance.prediction import Level
from ...guidance.testing import GaussianMixture, MixtureDenoiser
from ...samplers import by_name, sample
from ...samplers.reflected import kernel, reflected

SIZE, WIDTH = 64, 0.01
PLACES = torch.linspace(-1, 1, 7, dtype=torch.float64)
WEIGHTS = {
    "positive": torch.tensor([0.02, 0.03, 0.05, 0.1, 0.2, 0.25, 0.35], dtype=torch.float64),
    "null": torch.full((7,), 1 / 7, dtype=torch.float64),
}
STACKS = {
    "no bound": "cfg({w})",
    "static, threshold(ceiling=1)": "cfg({w}) | threshold(ceiling=1)",
    "dynamic, threshold()": "cfg({w}) | threshold()",
}


def unbounded(x: Tensor, level: Level, conditions: Tensor) -> Tensor:
    """The network of noise of places with a little width, number by number."""
    mixture = GaussianMixture(PLACES[:, None], torch.full((7,), WIDTH, dtype=torch.float64), torch.ones(7).double())
    rows = conditions.repeat_interleave(x.shape[1], 0)
    return MixtureDenoiser(mixture)(x.reshape(-1, 1), level, rows).reshape(x.shape)


def within(x: Tensor, level: Level, conditions: Tensor) -> Tensor:
    """Minus sigma times the score of the process in [0, 1]."""
    density, slope = kernel(x.unsqueeze(-1), PLACES / 2 + 0.5, level.sigma)
    weights = conditions.unsqueeze(1)
    return -level.sigma * (weights * slope).sum(-1) / (weights * density).sum(-1)


def distance(x: Tensor, scale: float) -> float:
    """Of Wasserstein, from the numbers of samples to the guided law, both on [-1, 1]."""
    law = (scale * WEIGHTS["positive"].log() + (1 - scale) * WEIGHTS["null"].log()).softmax(0)
    middles = (torch.arange(x.numel(), dtype=torch.float64) + 0.5) / x.numel()
    exact = PLACES[torch.searchsorted(law.cumsum(0), middles).clamp(max=6)]
    return float((x.double().flatten().sort().values - exact).abs().mean())


def compared(scale: float, count: int, steps: int) -> dict[str, float]:
    """The distance to the law of each answer, by its name."""
    told = {name: one.expand(count, -1) for name, one in WEIGHTS.items()}
    own = {"conditions": told, "shape": (SIZE,), "seeds": range(count), "dtype": torch.float64}
    found = {}
    for name, stack in STACKS.items():
        scheduler = by_name("ddim", {**BETAS, "timestep_spacing": "trailing"})
        found[name] = sample(unbounded, stack.format(w=scale), scheduler, steps=steps, **own).x  # type: ignore[arg-type]
    sigmas = [5 * (0.01 / 5) ** (step / steps) for step in range(steps + 1)]
    for name, stochastic in (("reflected, probability flow", False), ("reflected, stochastic", True)):
        made = reflected(within, f"cfg({scale})", sigmas, stochastic=stochastic, **own)  # type: ignore[arg-type]
        found[name] = 2 * made.x - 1
    return {name: distance(x, scale) for name, x in found.items()}


@click.command()
@click.option("--count", type=click.IntRange(1), default=50, show_default=True, help="Samples of a row.")
@click.option("--steps", type=click.IntRange(1), default=50, show_default=True, help="Of the samplers.")
def main(count: int, steps: int) -> None:
    """Print the table."""
    scales = (1, 3, 8)
    found = [compared(scale, count, steps) for scale in scales]
    click.echo(f"| answer | {' | '.join(f'scale {scale}' for scale in scales)} |\n{'|---' * 4}|")
    for name in found[0]:
        click.echo(f"| {name} | {' | '.join(f'{one[name]:.3f}' for one in found)} |")


if __name__ == "__main__":
    main()
