"""RED-diff against its recursion and its fixed point, and measurements under CFG++ against the formula."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

import guidestack as gs
from guidestack.guidance import GaussianMixture
from guidestack.guidance.errors import InputError, NonFiniteError, RuleError, UnsupportedError
from guidestack.guidance.keyed import Keys, normal
from guidestack.guidance.objective import Objective
from guidestack.guidance.objectives import Blur
from guidestack.guidance.testing import MixtureDenoiser
from guidestack.samplers import grid
from guidestack.samplers.red_diff import red_diff

MANY, MEAN, WIDTH, Y = 4000, 0.5, 0.8, 2.0


def measured(x0: Tensor) -> Tensor:
    return -(Y - x0).square().flatten(1).sum(1) / 2


measured.space = "latents"  # type: ignore[attr-defined]


def gaussian(size: int) -> MixtureDenoiser:
    ones = torch.ones(1, dtype=torch.float64)
    return MixtureDenoiser(GaussianMixture(MEAN * torch.ones(1, size, dtype=torch.float64), WIDTH * ones, ones))


def sgd(lr: float) -> Any:
    return lambda parameters: torch.optim.SGD(parameters, lr=lr)


def solved(**options: Any) -> Tensor:
    options = {"start": torch.zeros(1, MANY, dtype=torch.float64), "steps": 60, **options}
    scheduler = options.pop("scheduler", None) or DDIMScheduler(beta_start=1e-4, beta_end=0.02)
    given = {
        "conditions": {"positive": torch.ones(len(options["start"]), 1)},
        "objectives": {"mine": measured},
        **options,
    }
    size = options["start"].shape[1]
    return red_diff(gaussian(size), "stack()", scheduler, "mine", **given).x


@pytest.mark.parametrize("weight", [0.0, 0.25, 2.0])
def test_the_mean_follows_the_recursion_of_gaussian_data(weight: float) -> None:
    """Of many numbers with one y: d mean = -lr (mean - y + lambda k (mean - m)) at each level."""
    found = solved(weight=weight, optimizer=sgd(0.1))
    scheduler, mean = DDIMScheduler(beta_start=1e-4, beta_end=0.02), 0.0
    scheduler.set_timesteps(60)
    for point in grid(scheduler).points:
        a, s = point.level.alpha, point.level.sigma
        k = s * s / (a * a * WIDTH**2 + s * s)
        mean -= 0.1 * (mean - Y + weight * k * (mean - MEAN))
    assert float(found.mean()) == pytest.approx(mean, abs=0.02)


def test_the_fixed_point() -> None:
    """(y + lambda k m) / (1 + lambda k), of levels that differ little: wherever it begins."""
    scheduler = DDIMScheduler(num_train_timesteps=60, trained_betas=[0.7, *[1e-3] * 59])
    scheduler.set_timesteps(60)
    levels = [point.level for point in grid(scheduler).points]
    k = sum(one.sigma**2 / (one.alpha**2 * WIDTH**2 + one.sigma**2) for one in levels) / len(levels)
    for begin in (0.0, 3.0):
        start = torch.full((1, MANY), begin, dtype=torch.float64)
        found = solved(start=start, weight=2.0, optimizer=sgd(0.1), scheduler=scheduler)
        assert float(found.mean()) == pytest.approx((Y + 2 * k * MEAN) / (1 + 2 * k), abs=0.03)


def test_without_a_weight_it_is_least_squares_whatever_the_optimizer() -> None:
    start = torch.zeros(2, 5, dtype=torch.float64)
    for optimizer in (sgd(0.5), torch.optim.LBFGS, lambda one: torch.optim.AdamW(one, lr=0.3, weight_decay=0)):
        found = solved(weight=0.0, start=start, optimizer=optimizer, steps=100)
        torch.testing.assert_close(found, torch.full_like(start, Y), atol=0.02, rtol=0)


@pytest.mark.parametrize("over", ["linear", "sqrt", "square", "constant"])
def test_as_a_rule_it_follows_the_recursion_too(over: str) -> None:
    """It begins with the estimate at the first x, and ends without the noise that the schedule ends with."""
    scheduler = DDIMScheduler(beta_start=1e-4, beta_end=0.02, clip_sample=False, set_alpha_to_one=False)
    found = gs.sample(
        gaussian(MANY), f"red_diff('mine', weight=0.5, lr=0.1, over={over!r}, optimizer='sgd')", scheduler,
        conditions={"positive": torch.ones(1, 1)}, shape=(MANY,), seeds=[0], steps=60, dtype=torch.float64,
        objectives={"mine": measured},
    ).x  # fmt: skip
    power, mean = {"linear": 1.0, "sqrt": 0.5, "square": 2.0, "constant": 0.0}[over], None
    for point in grid(scheduler).points:
        a, s = point.level.alpha, point.level.sigma
        k = s * s / (a * a * WIDTH**2 + s * s)
        pull = 0.5 * (s / a) ** (power - 1)
        mean = k * MEAN if mean is None else mean  # of x = N(0, 1): a WIDTH^2 x + s^2 MEAN over the same
        mean -= 0.1 * (mean - Y + pull * k * (mean - MEAN)) if point.step else 0.1 * (mean - Y)
    assert float(found.mean()) == pytest.approx(mean, abs=0.02)


def test_a_step_is_the_formula_and_samples_do_not_meet() -> None:
    start = torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(2, 3)
    both = solved(start=start, optimizer=sgd(0.1), steps=2, seeds=[5, 6], weight=0.7)
    mean = start.clone()
    scheduler = DDIMScheduler(beta_start=1e-4, beta_end=0.02)
    scheduler.set_timesteps(2)
    for place, point in enumerate(grid(scheduler).points):
        a, s = point.level.alpha, point.level.sigma
        noise = normal(Keys((5, 6), place).generators(range(2), "red_diff"), (3,)).double()
        x = a * mean + s * noise
        guessed = s * (x - a * MEAN) / (a * a * WIDTH**2 + s * s)
        mean = mean - 0.1 * (mean - Y + 0.7 * s / a * (guessed - noise))
    torch.testing.assert_close(both, mean)
    for place, seed in enumerate((5, 6)):
        alone = solved(start=start[[place]], optimizer=sgd(0.1), steps=2, seeds=[seed], weight=0.7)
        torch.testing.assert_close(alone, both[[place]])


class Noisy(Objective):
    space = "noisy"


class Rough(Objective):
    space, differentiable = "latents", False


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"weight": -1}, InputError, "weight must be"),
        ({"over": "cubic"}, InputError, "over is linear"),
        ({"seeds": [1, 2, 3]}, InputError, "seeds has 3 entries for 1 samples"),
        ({"objectives": {"mine": Noisy()}}, UnsupportedError, "sees noisy samples"),
        ({"objectives": {"mine": Rough()}}, RuleError, "has no gradient"),
        ({"optimizer": sgd(1e30), "steps": 30}, NonFiniteError, "NaN or Inf"),
    ],
)
def test_bad_input(options: dict[str, Any], error: Any, words: str) -> None:
    with pytest.raises(error, match=words):
        solved(start=torch.zeros(1, 4, dtype=torch.float64), **options)


def test_measurements_of_another_size_are_refused_before_the_network_is_asked() -> None:
    def never(x: Tensor, level: Any, conditions: Tensor) -> Tensor:
        raise AssertionError("asked")

    given = {"conditions": {"positive": torch.ones(1, 1)}, "objectives": {"blur": torch.zeros(3, 8, 8)}}
    with pytest.raises(InputError, match="8"):
        red_diff(never, "stack()", DDIMScheduler(), "blur(1)", torch.zeros(1, 3, 16, 16), **given)


def test_measurements_under_cfg_pp() -> None:
    """CFG++ for inverse problems: jump to the fitted clean sample, re-noise with the unconditional noise."""
    size = 6
    generator = torch.Generator().manual_seed(0)
    means = torch.rand(2, 3, size, size, generator=generator, dtype=torch.float64)
    mixture = GaussianMixture(means, torch.full((2,), 0.3, dtype=torch.float64), torch.ones(2).double())
    picture = Blur(1.0).measure(means[:1])[0]
    told = {"positive": torch.tensor([[1.0, 0.2]]), "null": torch.tensor([[1.0, 1.0]])}
    scheduler = DDIMScheduler(beta_start=1e-4, beta_end=0.02, clip_sample=False, steps_offset=1)
    objective = Blur(1.0, spread=0.5).given(picture)
    made = gs.sample(
        MixtureDenoiser(mixture), "cfgpp(0.4) | tfg('mine', mu=0.1, over='constant')", scheduler, conditions=told,
        shape=(3, size, size), seeds=[1], steps=5, dtype=torch.float64, objectives={"mine": objective},
    )  # fmt: skip
    x = normal([torch.Generator().manual_seed(1)], (3, size, size)).double()
    points = grid(scheduler).points
    for place, point in enumerate(points):
        level, after = point.level, grid(scheduler).after(place)
        c, u = (mixture.denoised(x, level, told[name].double()) for name in ("positive", "null"))
        noise = (x - level.alpha * u) / level.sigma
        x0 = u + 0.4 * (c - u)
        leaf = x0.clone().requires_grad_()
        (slope,) = torch.autograd.grad(-(Blur(1.0).measure(leaf) - picture).square().sum() / (2 * 0.5**2), leaf)
        x = after.alpha * (x0 + 0.1 * slope) + after.sigma * noise
    torch.testing.assert_close(made.x, x, atol=1e-5, rtol=0)
