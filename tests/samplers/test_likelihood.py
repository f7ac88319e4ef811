"""The density of data along the probability flow, against laws that are known."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, EDMEulerScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from guidestack.evaluation.world import WORLDS
from guidestack.guidance import GaussianMixture
from guidestack.guidance.errors import CompositionError, InputError, NonFiniteError
from guidestack.guidance.prediction import EPSILON, FLOW, Level, Parameterization
from guidestack.guidance.testing import MixtureDenoiser
from guidestack.samplers import Likelihood, likelihood
from guidestack.samplers.likelihood import clock, reach

PLANE = WORLDS["plane"]
FAR = (1e-4, 1e5)


def told(batch: int) -> dict[str, Tensor]:
    return {name: PLANE.weights(one).expand(batch, -1) for name, one in (("positive", "a"), ("null", "all"))}


def found(x: Tensor, stack: str = "stack()", scheduler: Any = None, **options: Any) -> Likelihood:
    options = {"probes": 0, "tolerance": 1e-6, "sigmas": FAR, "conditions": told(len(x)), **options}
    emits = FLOW if isinstance(scheduler, FlowMatchEulerDiscreteScheduler) else EPSILON
    return likelihood(MixtureDenoiser(PLANE.mixture, emits), stack, scheduler or DDIMScheduler(), x, **options)


@pytest.mark.parametrize(("scheduler", "sigmas"), [(DDIMScheduler, FAR), (FlowMatchEulerDiscreteScheduler, (1e-4, 1))])
def test_it_is_the_log_density_of_the_mixture(scheduler: Any, sigmas: tuple[float, float]) -> None:
    x = PLANE.law("a").draw(3, 3)
    ours = found(x, scheduler=scheduler(), sigmas=sigmas)
    torch.testing.assert_close(ours.nats, PLANE.law("a").log_density(x), atol=1e-3, rtol=0)
    assert ours.error.tolist() == [0, 0, 0]
    assert ours.bits(7)[0] == pytest.approx(7 - float(ours.nats[0]) / (2 * math.log(2)))


def one_dimension(stack: str, x: float) -> float:
    stds = torch.tensor([1.0, 2.0], dtype=torch.float64).sqrt()
    model = MixtureDenoiser(GaussianMixture(torch.zeros(2, 1, dtype=torch.float64), stds, torch.ones(2).double()))
    conditions = {"positive": torch.tensor([[1.0, 0]]), "null": torch.tensor([[0.0, 1]])}
    at = torch.tensor([[x]], dtype=torch.float64)
    how = {"probes": 0, "tolerance": 1e-8, "sigmas": (1e-4, 1e5)}
    return float(likelihood(model, stack, DDIMScheduler(), at, conditions=conditions, **how).nats)


@pytest.mark.parametrize(("stack", "variance"), [("stack()", 1.0), ("cfg(3)", 0.25), ("cfg(0)", 2.0)])
def test_under_a_stack_it_is_the_law_of_the_deterministic_sampler(stack: str, variance: float) -> None:
    """Under CFG from infinite noise 2^(1 - w), which is not the powered law's 2 / (w + 1)."""
    expected = -0.5 * (0.7**2 / variance + math.log(2 * math.pi * variance))
    assert one_dimension(stack, 0.7) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("stack", ["apg(3) | rescale(0.7)", "during(cfg(3), sigma=(0.1, 2))", "tcfg(2)"])
def test_gradients_go_through_the_rules(stack: str) -> None:
    """The exact trace is that of differences of the velocity."""
    x = PLANE.law("a").draw(1, 5)
    from guidestack.guidance.notation.presets import as_stack
    from guidestack.guidance.step import Run
    from guidestack.samplers.likelihood import Flow
    from guidestack.samplers.loop import Setup

    setup = Setup(MixtureDenoiser(PLANE.mixture), DDIMScheduler(), told(1), [0], None, None, None)
    about = Run((1, 2), torch.float64, seeds=(0,))
    flow = Flow(as_stack(stack), about, lambda at, level: setup.network(at, level, None))  # type: ignore[arg-type]
    level = Level.vp(0.5)

    def velocity(at: Tensor) -> Tensor:
        return flow(at, level)[0].velocity

    by_differences = sum(
        float((velocity(x + 1e-5 * one) - velocity(x - 1e-5 * one))[0, place]) / 2e-5
        for place, one in enumerate(torch.eye(2, dtype=torch.float64)[:, None])
    )
    jacobian = torch.autograd.functional.jacobian(velocity, x)[0, :, 0]
    assert float(jacobian.trace()) == pytest.approx(by_differences, rel=1e-5)


@pytest.mark.slow
def test_random_probes_are_unbiased_and_keyed_by_the_seed() -> None:
    x = PLANE.law("a").draw(2, 7)
    exact = found(x, tolerance=1e-4)
    guessed = found(x, tolerance=1e-4, probes=200, seeds=[3, 4])
    away = (guessed.nats - exact.nats).abs() / guessed.error
    assert bool((away < 4).all())
    assert bool((guessed.error > 0).all())
    again = found(x[1:], tolerance=1e-4, probes=200, seeds=[4])  # alone as in a batch
    assert torch.equal(again.nats, guessed.nats[1:])
    single = found(x[:1], tolerance=1e-4, probes=1)
    assert bool(single.error.isnan().all())


def test_the_levels_are_those_of_the_training() -> None:
    own = reach(DDIMScheduler(beta_start=1e-4, beta_end=0.02))
    assert (own.low, own.high, own.flow) == (pytest.approx(0.01, rel=0.01), pytest.approx(157.4, rel=0.01), False)
    time = clock(DDIMScheduler(beta_start=1e-4, beta_end=0.02))
    assert time(own.at(own.ends[0])) == pytest.approx(0)
    assert time(own.at(own.ends[1])) == pytest.approx(999)
    assert clock(FlowMatchEulerDiscreteScheduler())(Level.flow(0.25)) == 250
    assert reach(EDMEulerScheduler()).high == 80
    zero = reach(DDIMScheduler(rescale_betas_zero_snr=True))
    assert math.isfinite(zero.high)


@pytest.mark.parametrize(
    ("stack", "words"),
    [
        ("cfgpp(0.3)", "two predictions"),
        ("apg(3, momentum=-0.5)", "remembers"),
        ("momentum(0.5)", "remembers"),
        ("during(cfg(3), progress=(0, 0.5))", "steps of a sampler"),
        ("langevin(1)", "moves samples"),
        ("classifier(2, 'blue')", "objective"),
    ],
)
def test_rules_that_are_no_function_of_the_place_are_refused(stack: str, words: str) -> None:
    with pytest.raises(CompositionError, match=words):
        found(torch.zeros(1, 2, dtype=torch.float64), stack)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"probes": -1}, "probes must be"),
        ({"tolerance": 0}, "tolerance must be"),
        ({"sigmas": (2, 1)}, "0 < low < high"),
        ({"seeds": [1, 2]}, "seeds has 2 entries for 1 samples"),
    ],
)
def test_bad_numbers_are_refused_in_one_line(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words) as error:
        found(torch.zeros(1, 2, dtype=torch.float64), **options)
    assert "\n" not in str(error.value)


def test_no_number_is_said_as_such() -> None:
    def broken(x: Tensor, level: Level, conditions: Tensor) -> Tensor:
        return x * math.nan

    with pytest.raises(NonFiniteError, match="NaN or Inf in the estimate"):
        likelihood(broken, "stack()", DDIMScheduler(), torch.zeros(1, 2), conditions=told(1))


def test_what_a_flow_of_another_parameterization_says_is_the_same() -> None:
    x = PLANE.law("a").draw(1, 9)
    v = likelihood(
        MixtureDenoiser(PLANE.mixture, Parameterization("v")),
        "cfg(2)",
        DDIMScheduler(prediction_type="v_prediction"),
        x,
        conditions=told(1),
        probes=0,
        tolerance=1e-6,
        sigmas=FAR,
    )
    torch.testing.assert_close(v.nats, found(x, "cfg(2)").nats, atol=1e-4, rtol=0)
