"""Guided Flows on a toy of plans: trajectories under a wanted return, by a flow and by its diffusion twin.

A plan is 16 positions on a line. It begins at a given place and wanders to another; its return is where it ends.
Two networks of one shape learn the same plans from the same batches, with the return left out of a quarter
of them: one emits the velocity of the straight path, the other that of the variance-preserving one. Both are then asked
for plans of a return that is rare, under guidance, in few and in many steps:

    python -m guidestack.scripts.dev.plans

prints a table of Markdown, that of docs/guided-flows.md; it takes a minute of one core.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click
import torch
from torch import Tensor, nn

from ...evaluation.world.draws import BETAS
from ...guidance.keyed import keyed
from ...guidance.prediction import Level
from ...samplers import by_name, sample

LENGTH, TRAINED, DROPPED, WANTED = 16, 3000, 0.25, 2.0
MODELS = {"flow": ("flow-euler", "flow-heun"), "diffusion": ("ddim", "dpm++2m")}
COUNT = 1000


def plans(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Plans ``(count, LENGTH)`` and their returns ``(count,)``, of mean 0 and deviation 1."""
    start, end, bend = torch.randn(3, count, 1, generator=generator)
    start, end = 0.5 * start, 0.5 * end
    along = torch.linspace(0, 1, LENGTH)
    path = start + (end - start) * along**2 * (3 - 2 * along) + 0.2 * bend * (math.pi * along).sin()
    return path, returns(path)


def returns(path: Tensor) -> Tensor:
    """Where a plan ends, in deviations of the data."""
    return 2 * path[:, -1]


class Planner(nn.Module):
    """A network of plans: from a noisy plan, a time in [0, 1], and (start, return, whether the return is told)."""

    waves: Tensor

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.register_buffer("waves", torch.arange(1, 9) * math.pi / 2)
        sizes = [LENGTH + 16 + 3, width, width, width, LENGTH]
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(sizes):
            layers += [nn.Linear(before, after), nn.SiLU()]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor, times: Tensor, told: Tensor) -> Tensor:
        """The velocity, shaped like x."""
        angle = times.unsqueeze(1) * self.waves
        return self.layers(torch.cat([x, angle.sin(), angle.cos(), told], 1))  # type: ignore[no-any-return]


def levels_of(kind: str, times: Tensor) -> tuple[Tensor, Tensor]:
    """Alpha and sigma at times in [0, 1], each ``(B, 1)``."""
    if kind == "flow":
        return (1 - times).unsqueeze(1), times.unsqueeze(1)
    alphas = by_name("ddim", BETAS).alphas_cumprod
    kept = alphas[(times * len(alphas)).long().clamp(max=len(alphas) - 1)].unsqueeze(1)
    return kept.sqrt(), (1 - kept).sqrt()


def trained(kind: str, steps: int = TRAINED, batch: int = 256, seed: int = 0) -> Planner:
    """A network of one kind; of the same seed it sees the same plans as the other kind's."""
    generator = keyed(seed, "plans")
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        network = Planner()
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        path, wanted = plans(batch, generator)
        told = torch.stack([path[:, 0], wanted, torch.ones(batch)], 1)
        told[torch.rand(batch, generator=generator) < DROPPED, 1:] = 0
        times = (torch.arange(batch) + torch.rand(batch, generator=generator)) / batch
        noise = torch.randn(path.shape, generator=generator)
        alpha, sigma = levels_of(kind, times)
        right = noise - path if kind == "flow" else alpha * noise - sigma * path
        loss = (network(alpha * path + sigma * noise, times, told) - right).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()
    return network.eval()


def model(kind: str, network: Planner) -> Callable[[Tensor, Level, Tensor], Tensor]:
    """The network as `sample` asks it."""
    alphas = by_name("ddim", BETAS).alphas_cumprod
    ratios = ((1 - alphas) / alphas).sqrt()

    def answer(x: Tensor, level: Level, told: Tensor) -> Tensor:
        time = level.sigma if kind == "flow" else int(torch.searchsorted(ratios, level.k_sigma * 0.9999)) / len(alphas)
        return network(x, torch.full((len(x),), float(time)), told)  # type: ignore[no-any-return]

    return answer


@dataclass(frozen=True)
class Judged:
    """The qualities of a set of plans.

    Attributes:
        achieved: their return, the mean.
        missed: how far they begin from where they should, the mean.
        rough: the mean square of their second differences over that of the data; 1 is as smooth as the data.
        seconds: of the processor, for 1000 plans.
    """

    achieved: float
    missed: float
    rough: float
    seconds: float


def judged(kind: str, network: Planner, sampler: str, steps: int, scale: float, count: int = COUNT) -> Judged:
    """Plans from places of the data, asked for a return of `WANTED`."""
    real, _ = plans(count, keyed(1, "plans"))
    start = real[:, 0]
    ones = torch.ones(count)
    conditions = {
        "positive": torch.stack([start, WANTED * ones, ones], 1),
        "null": torch.stack([start, 0 * ones, 0 * ones], 1),
    }
    config: Any = {} if kind == "flow" else {**BETAS, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}
    scheduler = by_name(sampler, config)
    began = time.process_time()
    made = sample(
        model(kind, network), f"cfg({scale:g})", scheduler, conditions=conditions, shape=(LENGTH,), seeds=range(count),
        steps=steps,
    ).x  # fmt: skip
    seconds = (time.process_time() - began) * 1000 / count
    rough = [float(path.diff(n=2, dim=1).square().mean()) for path in (made, real)]
    return Judged(float(returns(made).mean()), float((made[:, 0] - start).abs().mean()), rough[0] / rough[1], seconds)


@click.command()
@click.option("--train", type=click.IntRange(1), default=TRAINED, show_default=True, help="Steps of the training.")
@click.option("--count", type=click.IntRange(2), default=COUNT, show_default=True, help="Plans of a row.")
def main(train: int, count: int) -> None:
    """Train both networks, and print what their plans are like."""
    began = time.process_time()
    networks = {kind: trained(kind, train) for kind in MODELS}
    click.echo(f"trained in {time.process_time() - began:.0f} s of the processor; a return of {WANTED:g} is wanted\n")
    click.echo(f"| model | sampler | steps | scale | return | start missed by | roughness |\n{'|---' * 7}|")
    for kind, samplers in MODELS.items():
        for sampler in samplers:
            for steps in (2, 4, 10, 50):
                for scale in (1, 2, 4) if steps == 10 else (2,):
                    one = judged(kind, networks[kind], sampler, steps, scale, count)
                    click.echo(
                        f"| {kind} | {sampler} | {steps} | {scale} | {one.achieved:.2f} | {one.missed:.3f} | "
                        f"{one.rough:.2f} |"
                    )


if __name__ == "__main__":
    main()
