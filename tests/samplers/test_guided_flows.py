"""CFG on flow-matching networks: the velocity's guidance is the score's, and the toy of plans runs."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler

import guidestack as gs
from guidestack.guidance import GaussianMixture
from guidestack.guidance.prediction import FLOW, Level, convert
from guidestack.guidance.testing import MixtureDenoiser
from guidestack.samplers import by_name, sample
from guidestack.samplers.noise import generators, initial_noise
from guidestack.scripts.dev.plans import LENGTH, judged, model, plans, returns, trained


def lines() -> MixtureDenoiser:
    stds = torch.tensor([1.0, 2.0], dtype=torch.float64).sqrt()
    return MixtureDenoiser(GaussianMixture(torch.zeros(2, 1, dtype=torch.float64), stds, torch.ones(2).double()), FLOW)


ROWS = {"positive": torch.tensor([[1.0, 0]]), "null": torch.tensor([[0.0, 1]])}


@pytest.mark.parametrize("w", [0, 1, 2, 3])
def test_a_guided_flow_has_the_law_of_the_probability_flow_of_the_guided_score(w: int) -> None:
    """Of N(0, 1) and N(0, 2): every step is linear, and from x = 1 at pure noise leads to the deviation 2^((1-w)/2)."""
    scheduler = FlowMatchHeunDiscreteScheduler()
    made = gs.sample(
        lines(), f"cfg({w})", scheduler, conditions=ROWS, shape=(1,), seeds=[0], steps=100,
        start=torch.ones(1, 1, dtype=torch.float64), dtype=torch.float64,
    )  # fmt: skip
    assert float(made.x) ** 2 == pytest.approx(2 ** (1 - w), rel=5e-3)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize(("name", "order"), [("flow-euler", 1), ("flow-heun", 2)])
def test_the_order_of_the_flow_samplers(name: str, order: int, shift: float) -> None:
    """On data N(1.3, 1/4), whose flow leads from z to 1.3 + z/2; and `sample` is the bare loop over the scheduler."""
    place, width = 1.3, 0.5

    def velocity(x: torch.Tensor, sigma: float) -> torch.Tensor:
        variance = (1 - sigma) ** 2 * width**2 + sigma**2
        away = x - (1 - sigma) * place
        return sigma / variance * away - place - (1 - sigma) * width**2 / variance * away

    def denoiser(x: torch.Tensor, level: Level, told: Any) -> torch.Tensor:
        return velocity(x, level.sigma)

    z, errors = initial_noise((3,), generators(range(16))), []
    for steps in (10, 20, 40):
        made = sample(
            denoiser, "stack()", by_name(name, {"shift": shift}), conditions={"positive": torch.zeros(16, 1)},
            shape=(3,), seeds=range(16), steps=steps,
        ).x  # fmt: skip
        scheduler = by_name(name, {"shift": shift})
        scheduler.set_timesteps(steps)
        x = z
        for timestep in scheduler.timesteps:
            x = scheduler.step(velocity(x, float(timestep) / 1000), timestep, x, return_dict=False)[0]
        torch.testing.assert_close(made, x, atol=2e-6, rtol=0)
        errors.append(float((made - (place + width * z)).abs().mean()))
    if shift == 1:  # a shifted schedule ends in a step of fixed length, 0.009, whose error does not fall
        assert math.log2(errors[0] / errors[2]) / 2 == pytest.approx(order, abs=0.15), errors


def test_guidance_of_clean_samples_read_as_a_velocity_is_that_of_velocities() -> None:
    mixture = GaussianMixture.example()
    model, level, x = MixtureDenoiser(mixture, FLOW), Level.flow(0.6), torch.randn(3, 2, 3, 3).double()
    told = [mixture.condition(*one).expand(3, -1) for one in ((0, 2), (0, 1, 2, 3))]
    c, u = (model(x, level, one) for one in told)
    clean = [mixture.denoised(x, level, one) for one in told]
    from guidestack.guidance.prediction import X0

    guided = clean[1] + 3 * (clean[0] - clean[1])
    torch.testing.assert_close(convert(guided, x, level, X0, FLOW), u + 3 * (c - u), atol=1e-6, rtol=0)


def test_one_step_of_a_guided_flow_is_the_formula() -> None:
    """The sign and the time of diffusers: v = eps - x0, from sigma 1 to 0."""
    scheduler = FlowMatchEulerDiscreteScheduler()
    start = torch.full((1, 1), 0.7, dtype=torch.float64)
    made = gs.sample(
        lines(), "cfg(3)", scheduler, conditions=ROWS, shape=(1,), seeds=[0], steps=1, start=start, dtype=torch.float64
    )
    c, u = (lines()(start, Level.flow(1.0), ROWS[name].double()) for name in ("positive", "null"))
    torch.testing.assert_close(made.x, start - (u + 3 * (c - u)))


def test_plans_and_their_returns() -> None:
    path, wanted = plans(4000, torch.Generator().manual_seed(0))
    assert path.shape == (4000, LENGTH)
    assert torch.equal(returns(path), wanted)
    assert float(wanted.std()) == pytest.approx(1, abs=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "sampler"), [("flow", "flow-euler"), ("diffusion", "ddim")])
def test_guidance_raises_the_return_of_plans(kind: str, sampler: str) -> None:
    network = trained(kind, 300, batch=64)
    one, four = (judged(kind, network, sampler, 6, scale, 100) for scale in (1, 4))
    assert four.achieved > one.achieved
    again = trained(kind, 3, batch=64), trained(kind, 3, batch=64)
    assert all(torch.equal(a, b) for a, b in zip(again[0].parameters(), again[1].parameters(), strict=True))


@pytest.mark.slow
def test_heuns_roughness_is_its_correction_where_the_noise_ends() -> None:
    """With Euler's step instead of the one that is corrected at sigma 0.001, plans are as smooth as Euler's."""
    network, count = trained("flow", 600), 200
    real, _ = plans(count, torch.Generator().manual_seed(1))
    told, denoiser = torch.stack([real[:, 0], torch.full((count,), 2.0), torch.ones(count)], 1), model("flow", network)

    def roughness(name: str, corrected: bool = True) -> float:
        scheduler = by_name(name)
        scheduler.set_timesteps(10)
        x = initial_noise((LENGTH,), generators(range(count)))
        for place, timestep in enumerate(scheduler.timesteps):
            last = name == "flow-heun" and place == len(scheduler.timesteps) - 2
            if last and not corrected:  # Euler's step has been taken, and the correction would be made here
                scheduler.prev_derivative = scheduler.dt = None
                scheduler._step_index += 1
                continue
            velocity = denoiser(x, Level.flow(float(timestep) / 1000), told)
            x = scheduler.step(velocity, timestep, x, return_dict=False)[0]
        return float(x.diff(n=2, dim=1).square().mean())

    with torch.no_grad():
        euler, heun, mended = roughness("flow-euler"), roughness("flow-heun"), roughness("flow-heun", corrected=False)
    assert heun > 4 * euler
    assert mended < 2 * euler
