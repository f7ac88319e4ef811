"""Samples of a world under a stack: the networks are exact, or as much worse as wanted, and everything else is real."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...guidance.errors import InputError
from ...guidance.notation.presets import as_stack
from ...guidance.observe import Observer
from ...guidance.rule import Rule
from ...guidance.testing import MixtureDenoiser
from ...samplers import by_name, parameterization, sample
from .worlds import ALL, World

SAMPLER, STEPS, COUNT, BATCH = "dpm++2m-karras", 25, 100_000, 5000
WEAK = 1.5  # by how much the components of the network "weak" are wider than those of the main one
BETAS = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear", "steps_offset": 1, "clip_sample": False}
"""The schedule of DDPM, which begins at nearly pure noise."""
FLOW = "flow-"  # samplers whose names begin so are for a flow model, which the same data then have
MAX_SAMPLES = 10_000_000


@dataclass(frozen=True, eq=False)
class Drawn:
    """Samples of a world.

    Attributes:
        x: shape ``(N, D)``, float32; the sample of seed s at place s - seed.
        evaluations: network evaluations, mean over the samples.
        seconds: that they took.
    """

    x: Tensor
    evaluations: float
    seconds: float = 0.0


def draw(
    world: World,
    stack: Rule | str | Mapping[str, Any],
    condition: str,
    *,
    negatives: Sequence[str] = (),
    positives: Sequence[str] = (),
    blur: float = 1.0,
    sampler: str = SAMPLER,
    steps: int = STEPS,
    count: int = COUNT,
    seed: int = 0,
    batch: int = BATCH,
    observe: Observer | None = None,
) -> Drawn:
    """Sample a world with `guidestack.sample`, as any other model.

    Args:
        world: one of `WORLDS`, or one of your own.
        stack: a stack, a rule, or the text or mapping of one. A second network ``weak`` is there for contrasts such as
            ``"positive@weak"``: its components are 1.5 times as wide as those of the main one.
        condition: the prompt, as `World.weights` reads it.
        negatives: negative prompts, likewise.
        positives: positives beside the prompt, likewise.
        blur: factor on the widths of the components that the network knows: 1 for an exact network.
        sampler: short name of a scheduler of diffusers, as in ``guidestack generate --sampler``.
        steps: of the sampler.
        count: samples.
        seed: of the first sample; the others follow. Cells of the same seeds begin with the same noise.
        batch: samples in one call; the result does not depend on it but for rounding.
        observe: told of every evaluation, as in `sample`.

    Raises:
        InputError: the condition, the sampler, or a number out of range.
        NonFiniteError: the stack leads to samples that are not finite.
        QueryError: a stack that this model cannot answer.
    """
    if not 1 <= count <= MAX_SAMPLES or not 0.1 <= blur <= 10:
        raise InputError(
            f"a world draws 1 to {MAX_SAMPLES} samples with a blur from 0.1 to 10; got {count} and {blur:g}"
        )
    from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

    rule, flow = as_stack(stack), sampler.startswith(FLOW)
    scheduler = by_name(sampler, FlowMatchEulerDiscreteScheduler() if flow else DDIMScheduler(**BETAS))
    emits = parameterization(scheduler)
    models = {
        name: MixtureDenoiser(world.mixture, emits, blur * more) for name, more in (("main", 1.0), ("weak", WEAK))
    }
    rows = {"positive": world.weights(condition), "null": world.weights(ALL)}
    rows |= {f"negative:{place}": world.weights(one) for place, one in enumerate(negatives)}
    rows |= {f"positive:{place}": world.weights(one) for place, one in enumerate(positives, 1)}
    began, found, evaluations = time.perf_counter(), [], 0
    for first in range(0, count, batch):
        size = min(batch, count - first)
        conditions: dict[str, Any] = {name: one.expand(size, -1) for name, one in rows.items()}
        made = sample(
            models,
            rule,
            scheduler,
            conditions={**conditions, "independent": independent(world)},
            shape=(world.dimensions,),
            seeds=range(seed + first, seed + first + size),
            steps=steps,
            identity={"model": f"world:{world.name}:{blur:g}"},
            observe=observe,
        )
        found.append(made.x)
        evaluations += sum(made.report.evaluations)
    return Drawn(torch.cat(found), evaluations / count, time.perf_counter() - began)


def independent(world: World) -> Callable[[Sequence[torch.Generator]], Tensor]:
    """A function that draws a class at random for each sample, for rules that ask for an independent condition."""
    table = torch.stack([world.weights(name) for name in world.classes])

    def drawn(generators: Sequence[torch.Generator]) -> Tensor:
        return table[torch.cat([torch.randint(len(table), (1,), generator=one) for one in generators])]

    return drawn
