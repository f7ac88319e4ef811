"""Samples along the probability flow: where closed forms lead, back to data, and the law of a mixture."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from guidestack.evaluation.world import WORLDS
from guidestack.guidance import GaussianMixture
from guidestack.guidance.errors import CompositionError, InputError, NonFiniteError
from guidestack.guidance.prediction import EPSILON, FLOW
from guidestack.guidance.testing import MixtureDenoiser
from guidestack.samplers import likelihood, probability_flow, sample

PLANE, FAR = WORLDS["plane"], (1e-4, 1e5)


def led(stack: str = "stack()", scheduler: Any = None, count: int = 3, model: Any = None, **options: Any) -> Any:
    scheduler = scheduler or DDIMScheduler()
    emits = FLOW if isinstance(scheduler, FlowMatchEulerDiscreteScheduler) else EPSILON
    told = {name: PLANE.weights(one).expand(count, -1) for name, one in (("positive", "a"), ("null", "all"))}
    options = {"conditions": told, "shape": (2,), "seeds": range(count), "dtype": torch.float64, **options}
    return probability_flow(model or MixtureDenoiser(PLANE.mixture, emits), stack, scheduler, **options)


@pytest.mark.parametrize(("stack", "variance"), [("stack()", 1.0), ("cfg(3)", 0.25), ("cfg(0)", 2.0)])
def test_one_gaussian_is_led_to_another_in_a_closed_form(stack: str, variance: float) -> None:
    """From infinite noise x goes to x times the deviation of 2^(1 - w), to the tolerance."""
    stds = torch.tensor([1.0, 2.0], dtype=torch.float64).sqrt()
    model = MixtureDenoiser(GaussianMixture(torch.zeros(2, 1, dtype=torch.float64), stds, torch.ones(2).double()))
    told = {"positive": torch.tensor([[1.0, 0]]).expand(2, -1), "null": torch.tensor([[0.0, 1]]).expand(2, -1)}
    noise = torch.tensor([[0.7], [-1.9]], dtype=torch.float64)
    how = {"start": noise, "tolerance": 1e-8, "sigmas": FAR, "conditions": told, "shape": (1,), "count": 2}
    torch.testing.assert_close(led(stack, model=model, **how).x, noise * math.sqrt(variance), rtol=1e-5, atol=0)


@pytest.mark.parametrize("stack", ["stack()", "cfg(2) | rescale(0.5)"])
@pytest.mark.parametrize(("kind", "sigmas"), [(DDIMScheduler, FAR), (FlowMatchEulerDiscreteScheduler, (1e-4, 1))])
def test_the_noise_of_a_likelihood_leads_back_to_the_data(kind: Any, sigmas: Any, stack: str) -> None:
    x0, scheduler = PLANE.law("a").draw(3, 3), kind()
    emits = FLOW if kind is FlowMatchEulerDiscreteScheduler else EPSILON
    told = {name: PLANE.weights(one).expand(3, -1) for name, one in (("positive", "a"), ("null", "all"))}
    how: dict[str, Any] = {"tolerance": 1e-8, "sigmas": sigmas}
    found = likelihood(MixtureDenoiser(PLANE.mixture, emits), stack, scheduler, x0, conditions=told, probes=1, **how)
    torch.testing.assert_close(led(stack, scheduler, start=found.noise, **how).x, x0, atol=1e-4, rtol=0)


def test_many_small_steps_come_to_the_same_samples() -> None:
    """Those of Euler in x / alpha, at the levels of the training; the solver takes a fraction of the evaluations."""
    scheduler = EulerDiscreteScheduler()
    ours = led("cfg(1.5)", scheduler, 4, tolerance=1e-4)
    told = {name: PLANE.weights(one).expand(4, -1) for name, one in (("positive", "a"), ("null", "all"))}
    high = float(((1 - scheduler.alphas_cumprod[-1]) / scheduler.alphas_cumprod[-1]).sqrt())
    theirs = sample(
        MixtureDenoiser(PLANE.mixture), "cfg(1.5)", scheduler, conditions=told, shape=(2,), seeds=range(4), steps=1000,
        dtype=torch.float64, start=(1 + high**2) ** 0.5 * torch.stack([_noise(seed) for seed in range(4)]),
    ).x  # fmt: skip
    torch.testing.assert_close(ours.x, theirs, atol=0.05, rtol=0)
    assert all(count % 2 == 0 and 40 < count < 600 for count in ours.evaluations)  # against 2000
    assert led("cfg(1.5)", scheduler, 4, tolerance=1e-2).evaluations < ours.evaluations


def _noise(seed: int) -> Tensor:
    return torch.randn((2,), generator=torch.Generator().manual_seed(seed)).double()


def test_a_sample_is_of_its_seed_alone() -> None:
    both = led()
    alone = led(count=1, seeds=[2])
    torch.testing.assert_close(alone.x, both.x[2:], rtol=1e-9, atol=1e-9)
    assert alone.evaluations == both.evaluations[2:]


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"stack": "cfg(3) | langevin(1)"}, CompositionError, "a probability flow"),
        ({"tolerance": 0}, InputError, "tolerance must be above 0"),
        ({"start": torch.zeros(2, 2)}, InputError, r"start has shape \(2, 2\), expected \(3, 2\)"),
        ({"seeds": []}, InputError, "seeds is empty"),
        ({"sigmas": (2, 1)}, InputError, "sigmas are two noise levels"),
        ({"model": lambda x, level, told: x * torch.nan}, NonFiniteError, "NaN or Inf in the estimate of sample 0"),
    ],
)
def test_what_cannot_be_is_one_line(options: dict[str, Any], error: Any, words: str) -> None:
    with pytest.raises(error, match=words) as caught:
        led(**options)
    assert "\n" not in str(caught.value)
