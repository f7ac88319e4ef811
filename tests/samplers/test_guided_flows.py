"""CFG on flow-matching networks: the velocity's guidance is the score's, and the toy of plans runs."""

from __future__ import annotations

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler

import guidestack as gs
from guidestack.guidance import GaussianMixture
from guidestack.guidance.prediction import FLOW, Level, convert
from guidestack.guidance.testing import MixtureDenoiser
from guidestack.scripts.dev.plans import LENGTH, judged, plans, returns, trained


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
