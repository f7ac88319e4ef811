"""From data to the noise that a sampler makes it from: first-order steps undone, under any stack.

A first-order step from a level (alpha, sigma) to a lower one (alpha', sigma') jumps to D and re-noises with R, which is
D itself but for rules such as CFG++:

    x' = alpha' D.denoised + sigma' R.noise.

Undone, x is what that step would have started from, were the network's answer at x what it is at x':

    x = alpha (x' - sigma' R.noise) / alpha' + sigma D.noise                      on diffusion paths,
    x = x' + sigma (1 - sigma') D.velocity - sigma' (1 - sigma) R.velocity        on the flow path.

The network is evaluated at x' and told the level of x. What is taken to be the same at both ends is the noise that it
answers there, or the velocity of a flow, whatever it emits; where it is the same, x is exact. DDIM inversion is the
first line with R = D. The answers do differ a little between x' and x, and guidance multiplies that: the larger its
scale, the less exactly data come back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..guidance.errors import CompositionError, UnsupportedSchedulerError
from ..guidance.fields import count
from ..guidance.move import check_still
from ..guidance.network import Denoiser
from ..guidance.notation.presets import as_stack
from ..guidance.plan import remembering
from ..guidance.prediction import Level, Parameterization, wide
from ..guidance.rule import Rule, Stack
from ..guidance.run import GuidedRun
from ..guidance.step import Estimate, Run
from .levels import grid, option
from .loop import Sampled, Setup, finished
from .noise import one_each

FIRST_ORDER = (
    "CogVideoXDDIMScheduler",
    "DDIMScheduler",
    "EDMEulerScheduler",
    "EulerDiscreteScheduler",
    "FlowMatchEulerDiscreteScheduler",
)
"""The schedulers whose steps can be undone: each from one evaluation, and without fresh noise."""


def undone(estimate: Estimate, x: Tensor, level: Level) -> Tensor:
    """Invert the step that ends at `x`, by the equations at the top of this module.

    Args:
        estimate: the stack's estimate at `placed` x, read at the noisier level that the step comes from.
        x: samples, shape ``(B, ...)``.
        level: their level.

    Returns:
        Samples at the level of `estimate`, in float32 or better.
    """
    jump, back = estimate.prediction, estimate.renoise or estimate.prediction
    noisier, x = jump.level, x.to(wide(x.dtype))
    if noisier.path == "flow":
        forwards, backwards = noisier.sigma * (1 - level.sigma), level.sigma * (1 - noisier.sigma)
        return x + forwards * jump.velocity - backwards * back.velocity
    return noisier.alpha / level.alpha * (x - level.sigma * back.noise) + noisier.sigma * jump.noise


def placed(x: Tensor, level: Level, noisier: Level, emits: Parameterization) -> Tensor:
    """Samples `x` at `level` in the scaling in which those at `noisier` are held.

    Data of unit variance (of ``sigma_data``, for EDM networks) keep their variance, so that the network is handed the
    same numbers whether the scheduler keeps x or ``x / alpha``. On the flow path nothing is rescaled.
    """
    return x * (size(noisier, emits) / size(level, emits))


def size(level: Level, emits: Parameterization) -> float:
    """Standard deviation of samples at `level`; 1 on the flow path, where networks take them as they are."""
    if level.path == "flow":
        return 1.0
    return math.hypot(level.alpha * (emits.sigma_data if emits.name.startswith("edm") else 1.0), level.sigma)


def undoable(scheduler: Any) -> None:
    """Refuse a scheduler whose steps cannot be undone.

    Raises:
        UnsupportedSchedulerError: naming it and what to use.
    """
    cls: Any = type(scheduler)
    name = next((base.__name__ for base in cls.__mro__ if base.__name__ in FIRST_ORDER and base.step is cls.step), "")
    if not name:
        raise UnsupportedSchedulerError(
            f"{cls.__name__} cannot be inverted: an inversion undoes first-order steps without fresh noise, those of "
            f"{', '.join(FIRST_ORDER)}; use {_nearest(scheduler)}"
        )
    clips = option(scheduler, "clip_sample") and name == "DDIMScheduler"
    for cut, on in (("thresholding", option(scheduler, "thresholding")), ("clip_sample", clips)):
        if on:
            raise UnsupportedSchedulerError(
                f"{cls.__name__} with {cut}=True cannot be inverted: what it cuts off is lost; set {cut}=False"
            )
    if option(scheduler, "stochastic_sampling"):
        raise UnsupportedSchedulerError(
            f"{cls.__name__} with stochastic_sampling=True cannot be inverted: it draws fresh noise in each step"
        )


def _nearest(scheduler: Any) -> str:
    """The scheduler to use instead, for the same network."""
    name = type(scheduler).__name__
    if name.startswith("Flow") or option(scheduler, "use_flow_sigmas"):
        return "FlowMatchEulerDiscreteScheduler with the same shift"
    if name.startswith("EDM"):
        return "EDMEulerScheduler.from_config(scheduler.config)"
    return "DDIMScheduler.from_config(scheduler.config, clip_sample=False)"


def reversible(stack: Stack) -> None:
    """Refuse a stack that remembers, or takes turns: an inversion comes to the steps in the opposite order.

    Raises:
        CompositionError: naming the rule.
    """
    check_still(stack, "an inversion")
    whole = next((rule for rule in stack.rules if rule.whole_stack), None)
    if rule := whole or remembering(stack):
        raise CompositionError(
            f"{rule} remembers earlier steps of a run, which an inversion comes to last; invert with a rule that does "
            "not, such as cfg(scale) or cfgpp(scale), and sample with this one"
        )


@torch.no_grad()
def invert(
    model: Denoiser | Mapping[str, Denoiser],
    stack: Rule | str | Mapping[str, Any],
    scheduler: Any,
    x0: Tensor,
    *,
    conditions: Mapping[str, Any],
    seeds: Sequence[int] | None = None,
    steps: int = 50,
    emits: Parameterization | None = None,
    negatives: Sequence[int] | None = None,
    positives: Sequence[int] | None = None,
    max_rows: int | None = None,
) -> Sampled:
    """Find the noise from which a sampler makes given data, under a stack.

    Args:
        model: as in `sample`.
        stack: a stack, a rule, or the text or mapping of one; its rules must not remember earlier steps.
        scheduler: one of `FIRST_ORDER`; its `set_timesteps` is called.
        x0: the data, shape ``(B, ...)``, at the level at which the scheduler ends: without noise, mostly.
        conditions: as in `sample`: what the data are said to be.
        seeds: one for each sample, for rules that draw at random; 0, 1, ... by default.
        steps: steps of the scheduler.
        emits: as in `sample`.
        negatives: as in `sample`.
        positives: as in `sample`.
        max_rows: as in `sample`.

    Returns:
        Samples at the first level of the schedule, for `sample` as its `start`, and the report. Its steps are numbered
        as the sampler's, and so come in falling order.

    Raises:
        InputError: no ``"positive"`` condition, or `emits` contradicts the scheduler.
        UnsupportedSchedulerError: the scheduler's steps cannot be undone.
        CompositionError: a rule remembers earlier steps.
        NonFiniteError: NaN or Inf in a sample, as in `sample`.
        QueryError: the model cannot answer what the stack asks.

    Cost: that of sampling with the same stack and steps.
    """
    stack, steps = as_stack(stack), count("steps", steps)
    undoable(scheduler)
    reversible(stack)
    seeds = one_each(seeds, len(x0))
    setup = Setup(model, scheduler, conditions, seeds, emits, negatives, positives)

    scheduler.set_timesteps(steps, device=x0.device)
    schedule = grid(scheduler)
    about = Run(tuple(x0.shape), x0.dtype, x0.device, schedule.steps, seeds, *setup.counts, emits=setup.emits)
    run = GuidedRun(stack, about, max_rows)
    x = x0
    for index in reversed(range(len(schedule.points))):
        point, level = schedule.points[index], schedule.after(index)
        here = placed(x, level, point.level, setup.emits)
        estimate = run.estimate(
            setup.network(here, point.level, setup.keys(point)),
            here,
            point.step,
            point.level,
            point.evaluation,
            point.time,
        )
        x = undone(estimate, x, level).to(x0.dtype)
    return finished(run, x)
