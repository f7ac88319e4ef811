r"""RED-diff (Mardani et al. 2023): an optimizer as a sampler, for inverse problems.

One picture is optimized, by any optimizer of torch, so that it fits its measurements and so that the network, at one
noise level after the other, predicts exactly the noise that was added to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..guidance.errors import InputError, NonFiniteError, UnsupportedError, shown
from ..guidance.fields import is_number
from ..guidance.keyed import Keys, normal
from ..guidance.network import Denoiser
from ..guidance.notation.objectives import objectives as named_objectives
from ..guidance.notation.presets import as_stack
from ..guidance.objective import Decode, check_recording
from ..guidance.plan import level_before
from ..guidance.prediction import Parameterization
from ..guidance.rule import Rule
from ..guidance.rules.red_diff import BETAS, WEIGHTS, omega
from ..guidance.run import GuidedRun
from ..guidance.step import Run
from .levels import grid
from .loop import Sampled, Setup, finished
from .noise import one_each

Optimizer = Callable[[list[Tensor]], torch.optim.Optimizer]


def adam(parameters: list[Tensor]) -> torch.optim.Optimizer:
    """The authors' optimizer: Adam with a learning rate of 0.1 and betas of 0.9 and 0.99."""
    return torch.optim.Adam(parameters, lr=0.1, betas=BETAS)


@torch.no_grad()
def red_diff(
    model: Denoiser | Mapping[str, Denoiser],
    stack: Rule | str | Mapping[str, Any],
    scheduler: Any,
    objective: str,
    start: Tensor,
    *,
    conditions: Mapping[str, Any],
    seeds: Sequence[int] | None = None,
    steps: int = 100,
    weight: float = 0.25,
    over: str = "linear",
    optimizer: Optimizer = adam,
    emits: Parameterization | None = None,
    objectives: Mapping[str, Any] | None = None,
    decode: Decode | None = None,
) -> Sampled:
    r"""Solve an inverse problem by RED-diff: optimize the clean sample at one noise level after the other.

    At each level :math:`(\alpha, \sigma)` of the schedule, from the noisiest on, with fresh noise :math:`\epsilon`,
    :math:`x = \alpha\mu + \sigma\epsilon` and the stack's estimate :math:`\hat\epsilon` there, the optimizer makes one
    step on

    .. math:: -\log f(\mu) + \lambda\,\omega(\sigma/\alpha)\,\langle \mathrm{sg}(\hat\epsilon - \epsilon),\ \mu\rangle

    where sg holds a value still: no gradient goes through the network. With a measurement of spread s,
    :math:`-\log f = \|y - A\mu\|^2 / 2s^2`. What comes out is one mode of the posterior and no sample of it. At
    :math:`\lambda = 0` it is the least-squares fit; of data N(m, c^2), with A = 1 and s = 1, the fixed point is
    :math:`(y + \lambda k m) / (1 + \lambda k)`, k the mean of :math:`\sigma^2 / (\alpha^2c^2 + \sigma^2)` for the
    linear weight.

    Args:
        model: as in `sample`.
        stack: as in `sample`; its rules take no turns.
        scheduler: any supported scheduler that evaluates once a step: its levels are used, its steps are not.
        objective: the text of the objective that is log f, such as ``"known"`` or ``"blur(2)"``.
        start: :math:`\mu` to begin with, shape ``(B, ...)``, such as the adjoint of the measurements.
        conditions: as in `sample`.
        seeds: one for each sample; 0, 1, ... by default.
        steps: of the schedule, and of the optimizer.
        weight: :math:`\lambda` >= 0.
        over: :math:`\omega` of the noise level k: ``"linear"``, k; ``"sqrt"``, ``"square"`` or ``"constant"``.
        optimizer: makes the optimizer of the parameters that it is given; each sample has one of its own.
        emits: as in `sample`.
        objectives: as in `sample`.
        decode: as in `sample`.

    Returns:
        The optimized samples, and the report.

    Raises:
        InputError: numbers out of range, no such objective or weight, or another number of seeds than of samples.
        RuleError: the objective has no gradient.
        UnsupportedError: the objective sees noisy samples.
        CompositionError: a rule takes turns.
        NonFiniteError: NaN or Inf in a sample.

    Cost: what the stack asks for, once a step, without gradients; and the objective with its gradient.

    Differs from the paper: sums stand where its code has means over the measurements M and over the sample D, so that a
    sample of another size has the same problem: its lambda is :math:`\lambda D / M` there.

    References:
        Mardani et al., "A Variational Perspective on Solving Inverse Problems with Diffusion Models", arXiv:2305.04391.
    """
    stack, seeds = as_stack(stack), one_each(seeds, len(start))
    if not is_number(weight) or weight < 0:
        raise InputError(f"weight must be a number from 0; got {shown(weight)}")
    if over not in WEIGHTS:
        raise InputError(f"over is {', '.join(WEIGHTS)}; got {shown(over)}")
    check_recording()
    setup = Setup(model, scheduler, conditions, seeds, emits, None, None)
    named = named_objectives(objectives, decode)
    bound = named.find(objective)
    bound.need_gradient("red_diff")
    if bound.space == "noisy":
        raise UnsupportedError(
            f"red_diff: the objective {objective!r} sees noisy samples, and this gives it clean ones"
        )
    bound(start)  # refuses measurements of another size before the network is asked
    scheduler.set_timesteps(steps)
    schedule = grid(scheduler)
    known: dict[str, Any] = {"emits": setup.emits, "levels": schedule.levels, "objectives": named}
    about = Run(tuple(start.shape), start.dtype, start.device, schedule.steps, seeds, *setup.counts, **known)
    run = GuidedRun(stack, about)
    means = [one.clone().requires_grad_() for one in torch.split(start, 1)]
    optimizers = [optimizer([one]) for one in means]
    for position, point in enumerate(schedule.points):
        mean, keys = torch.cat(means).detach(), setup.keys(point)
        noise = _noise(keys, mean)
        x = point.level.noised(mean, noise)
        between = schedule.reached(position), level_before(schedule.points, position)
        at = point.step, point.level, point.evaluation, point.time
        estimate = run.estimate(setup.network(x, point.level, keys), x, *at, *between)
        pull = weight * omega(over, point.level) * (estimate.prediction.noise - noise)

        for one, held, own in zip(means, torch.split(pull, 1), optimizers, strict=True):

            def loss(one: Tensor = one, held: Tensor = held, own: torch.optim.Optimizer = own) -> Tensor:
                with torch.enable_grad():
                    own.zero_grad()
                    value = (held * one).sum() - bound(one).sum()
                    value.backward()  # type: ignore[no-untyped-call]
                return value.detach()

            own.step(loss)  # type: ignore[arg-type]
    found = torch.cat(means).detach()
    if not bool(found.isfinite().all()):
        lost = tuple(place for place, one in enumerate(found) if not bool(one.isfinite().all()))
        error = NonFiniteError(f"NaN or Inf in samples {list(lost)}: the optimizer diverged; lower its lr", lost)
        error.output = Sampled(found, run.report)
        raise error
    return finished(run, found)


def _noise(keys: Keys, like: Tensor) -> Tensor:
    return normal(keys.generators(range(len(like)), "red_diff"), like.shape[1:], like.device).to(like.dtype)
