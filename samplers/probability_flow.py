"""The probability-flow ODE as a sampler: an adaptive solver from noise to samples (Song et al. 2021)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..guidance.network import Denoiser
from ..guidance.notation.presets import as_stack
from ..guidance.prediction import Parameterization
from ..guidance.rule import Rule
from .likelihood import TOLERANCE, Flow, Reach, check_anywhere, check_finite, check_tolerance, flows, reach, solved
from .noise import check_seeds, generators, initial_noise, started


@dataclass(frozen=True, eq=False)
class Flowed:
    """Samples of the probability flow, and what they cost.

    Attributes:
        x: the samples, shape ``(B, ...)``.
        evaluations: network evaluations of each sample.
    """

    x: Tensor
    evaluations: tuple[int, ...]


@torch.no_grad()
def probability_flow(
    model: Denoiser | Mapping[str, Denoiser],
    stack: Rule | str | Mapping[str, Any],
    scheduler: Any,
    *,
    conditions: Mapping[str, Any],
    shape: Sequence[int],
    seeds: Sequence[int],
    start: Tensor | None = None,
    tolerance: float = TOLERANCE,
    sigmas: tuple[float, float] | None = None,
    emits: Parameterization | None = None,
    negatives: Sequence[int] | None = None,
    positives: Sequence[int] | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Flowed:
    """Sample from a model under a stack along the probability flow, by a solver that chooses its own steps.

    `likelihood` follows the same flow from data to noise, by the same solver, scipy's RK45: from the noise that it
    finds, this function returns to the data. Each sample has steps of its own, as many as the tolerance needs.

    Args:
        model: as in `sample`.
        stack: as in `likelihood`.
        scheduler: as in `likelihood`; its steps are not used.
        conditions: as in `sample`.
        shape: shape of one sample.
        seeds: one for each sample, for its noise and for rules that draw random numbers, which draw them once.
        start: the initial noise, shape ``(B, *shape)`` and standard normal, such as `Likelihood.noise`; by default it
            is drawn from the seeds.
        tolerance: relative and absolute tolerance of the solver, above 0 and below 1.
        sigmas: as in `likelihood`. The samples keep the noise of the lower level.
        emits: as in `sample`.
        negatives: as in `sample`.
        positives: as in `sample`.
        dtype: type of x; the solver computes in float64.
        device: where to sample.

    Returns:
        The samples, and the network evaluations of each.

    Raises:
        InputError: no seeds, `start` of another shape, numbers out of range, or scipy is not installed.
        CompositionError, UnsupportedSchedulerError, QueryError: as in `likelihood`.
        NonFiniteError: NaN or Inf in an answer of the model, or the solver cannot continue.

    Cost: the evaluations of the stack at some 50 to 100 points for each sample, at the default tolerance.

    References:
        Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations", arXiv:2011.13456.
    """
    stack = as_stack(stack)
    check_anywhere(stack)
    check_tolerance(tolerance)
    check_seeds(seeds)
    x = started(initial_noise(shape, generators(seeds), dtype=dtype, device=device), start)
    between, found, evaluations = reach(scheduler, sigmas), [], []
    about = model, stack, scheduler, conditions, emits, negatives, positives
    for place, (_, field) in enumerate(flows(x, seeds, *about)):
        one, price = _led(field, x[[place]], between, tolerance, place)
        found.append(one)
        evaluations.append(price)
    return Flowed(torch.cat(found), tuple(evaluations))


def _led(field: Flow, noise: Tensor, between: Reach, tolerance: float, place: int) -> tuple[Tensor, int]:
    """Return the sample that the flow makes of one sample's noise, and its network evaluations."""
    evaluations = 0

    def derivative(u: float, state: Any) -> Any:
        nonlocal evaluations
        level = between.at(u)
        estimate, price = field(torch.from_numpy(state).reshape(noise.shape).to(noise), level)
        evaluations += price
        told = (between.speed(level) * estimate.velocity).double().flatten().cpu().numpy()
        check_finite(told, f" of sample {place}", level, "noise to data", place)
        return told

    low, high = between.ends
    end = solved(derivative, (high, low), noise.double().flatten().cpu().numpy(), tolerance)
    return (end / between.at(low).alpha).reshape(noise.shape).to(noise), evaluations
