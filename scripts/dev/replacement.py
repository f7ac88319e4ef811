"""What replacement does to the law of the unknown part: the table and the count of docs/inverse-problems.md.

Pairs are N(0, 1) with a correlation, the network is exact, and one of each pair is known: the other one's law, given
that, is known too. Colors are those of the nearer one of two pictures, where the gray values of one are known.

    python -m guidestack.scripts.dev.replacement
"""

from __future__ import annotations

import click
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch import Tensor

from ...guidance.prediction import Level
from ...guidance.testing import GaussianMixture, MixtureDenoiser
from ...samplers import sample

CORRELATION, KNOWN = 0.8, 0.7
STACKS = (
    "replace('known')",
    "replace('known', fresh=True)",
    "langevin(3) | replace('known', fresh=True)",
    "replace('known', fresh=True) | recur(10)",
)


def network(x: Tensor, level: Level, conditions: Tensor) -> Tensor:
    """The network of noise of pairs, which are the two rows of a picture ``(B, 3, 2, N)``."""
    covariance = torch.tensor([[1, CORRELATION], [CORRELATION, 1]], dtype=x.dtype)
    whole = level.alpha**2 * covariance + level.sigma**2 * torch.eye(2, dtype=x.dtype)
    noise: Tensor = level.sigma * torch.linalg.inv(whole) @ x
    return noise


def found(stack: str, kind: type, pairs: int, steps: int) -> tuple[float, float]:
    """Mean and variance of the unknown ones of three times as many pairs; the known ones are checked to be exact."""
    y = torch.full((4, 2, pairs), KNOWN, dtype=torch.float64)
    y[3, 0], y[3, 1] = 1, 0  # opaque where it is known
    x = sample(
        network,
        stack,
        kind(clip_sample=False, timestep_spacing="trailing"),
        conditions={"positive": torch.zeros(1, 1)},
        shape=(3, 2, pairs),
        seeds=[0],
        steps=steps,
        dtype=torch.float64,
        objectives={"known": y},
    ).x
    assert torch.allclose(x[:, :, 0], y[:3, 0], atol=1e-4)
    return float(x[:, :, 1].mean()), float(x[:, :, 1].var())


def colored(stack: str, count: int = 16) -> int:
    """How many of `count` samples have the colors of the picture whose gray values are known, of two pictures."""
    pictures = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    x = sample(
        MixtureDenoiser(GaussianMixture(pictures, torch.tensor([0.1, 0.1]), torch.tensor([0.5, 0.5]))),
        stack,
        DDIMScheduler(clip_sample=False, timestep_spacing="trailing"),
        conditions={"positive": torch.ones(count, 2)},
        shape=(3, 16, 16),
        seeds=range(count),
        objectives={"gray": pictures[0]},
    ).x
    away, other = ((x - one).abs().mean((1, 2, 3)) for one in pictures)
    return int((away < other).sum())


@click.command()
@click.option("--pairs", type=click.IntRange(2), default=3000, show_default=True, help="In each of three channels.")
@click.option("--steps", type=click.IntRange(1), default=100, show_default=True, help="Of the samplers.")
def main(pairs: int, steps: int) -> None:
    """Print the table and the count."""
    click.echo(f"mean {CORRELATION * KNOWN:.2f} and variance {1 - CORRELATION**2:.2f} are the law's")
    click.echo("| stack | DDIM: mean, variance | DDPM: mean, variance |\n|---|---|---|")
    for stack in STACKS:
        cells = [found(stack, kind, pairs, steps) for kind in (DDIMScheduler, DDPMScheduler)]
        shown = stack.replace("|", r"\|")
        click.echo(f"| `{shown}` | {' | '.join(f'{mean:.2f}, {variance:.2f}' for mean, variance in cells)} |")
    for stack in ("replace('gray', fresh=True)", "langevin(3) | replace('gray', fresh=True)"):
        click.echo(f"{stack}: the right colors of {colored(stack)} of 16 samples")


if __name__ == "__main__":
    main()
