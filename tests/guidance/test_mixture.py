"""The oracle itself: against score, Tweedie and Bayes, by automatic differentiation of densities."""

from __future__ import annotations

import math

import pytest
import torch

import guidestack as gs
from guidestack.guidance.prediction import EPSILON, FLOW, X0, Level, Prediction, V
from guidestack.guidance.testing.checks import GaussianMixture, MixtureDenoiser
from guidestack.samplers import sample

MIXTURE = GaussianMixture.example()
LEVELS = [Level.vp(0.5), Level.ve(1.3), Level.flow(0.4)]
X = torch.sin(torch.arange(54.0).double() * 5).reshape(3, 2, 3, 3)
CONDITIONS = torch.stack([MIXTURE.condition(0), MIXTURE.condition(1, 3), MIXTURE.condition()])


def classify(mixture: GaussianMixture, x: torch.Tensor, level: Level, conditions: torch.Tensor) -> torch.Tensor:
    """``log p_t(condition | x)``: the classifier of the noisy samples, shape ``(B,)``."""
    everything = mixture.log_joint(x, level, mixture.weights.expand(len(x), -1))
    return mixture.log_joint(x, level, conditions).logsumexp(1) - everything.logsumexp(1)


def gradient(function: object, x: torch.Tensor) -> torch.Tensor:
    point = x.clone().requires_grad_()
    return torch.autograd.grad(function(point).sum(), point)[0]  # type: ignore[operator]


@pytest.mark.parametrize("level", LEVELS, ids=str)
def test_posterior_mean_is_tweedies(level: Level) -> None:
    score = gradient(lambda x: MIXTURE.log_density(x, level, CONDITIONS), X)
    assert torch.allclose(MIXTURE.denoised(X, level, CONDITIONS), (X + level.sigma**2 * score) / level.alpha)


@pytest.mark.parametrize("level", LEVELS, ids=str)
def test_the_classifier_turns_the_unconditional_into_the_conditional(level: Level) -> None:
    """eps_u - sigma * grad log p(c | x) = eps_c, exactly."""
    everything = MIXTURE.weights.expand(3, -1)

    def eps(conditions: torch.Tensor) -> torch.Tensor:
        return (X - level.alpha * MIXTURE.denoised(X, level, conditions)) / level.sigma

    push = gradient(lambda x: classify(MIXTURE, x, level, CONDITIONS), X)
    assert torch.allclose(eps(everything) - level.sigma * push, eps(CONDITIONS))
    assert torch.allclose(classify(MIXTURE, X, level, everything), torch.zeros(3).double(), atol=1e-12)


@pytest.mark.parametrize("level", LEVELS, ids=str)
def test_every_parameterization_is_the_same_denoiser(level: Level) -> None:
    for parameterization in (EPSILON, X0, V, FLOW):
        output = MixtureDenoiser(MIXTURE, parameterization)(X, level, CONDITIONS)
        denoised = Prediction(output, X, level, parameterization).denoised
        assert torch.allclose(denoised, MIXTURE.denoised(X, level, CONDITIONS))


def test_density_integrates_to_one() -> None:
    line = GaussianMixture(
        torch.tensor([[-1.0], [2.0]]).double(), torch.tensor([0.5, 1.0]).double(), torch.tensor([0.3, 0.7]).double()
    )
    x = torch.linspace(-12, 12, 4001, dtype=torch.float64).reshape(-1, 1)
    density = line.log_density(x, Level.ve(0.8), line.weights.expand(len(x), -1)).exp()
    assert abs(float(density.sum()) * 24 / 4000 - 1) < 1e-6


def line(stds: tuple[float, ...]) -> GaussianMixture:
    count = len(stds)
    return GaussianMixture(
        torch.zeros(count, 1, dtype=torch.float64), torch.tensor(stds, dtype=torch.float64), torch.ones(count).double()
    )


@pytest.mark.parametrize("scale", [1.5, 2.0, 3.0])
def test_cfg_with_a_first_order_sampler_ends_with_the_closed_forms_variance(scale: float) -> None:
    """p_u = N(0, 2), p_c = N(0, 1), from infinite noise: DDIM's variance is 2^(1-w)."""
    from diffusers import EulerDiscreteScheduler

    mixture, count = line((1.0, math.sqrt(2))), 4000
    rows = {"positive": torch.tensor([1.0, 0.0]), "null": torch.tensor([0.0, 1.0])}
    scheduler = EulerDiscreteScheduler(
        beta_start=1e-4, beta_end=0.02, use_karras_sigmas=True, timestep_spacing="trailing"
    )
    done = sample(
        MixtureDenoiser(mixture),
        gs.CFG(scale),
        scheduler,
        conditions={name: row.expand(count, -1) for name, row in rows.items()},
        shape=(1,),
        seeds=range(count),
        steps=300,
        dtype=torch.float32,
    )
    seen, wanted = float(done.x.var()), 2 ** (1 - scale)
    assert abs(seen / wanted - 1) < 0.08  # 4000 samples: 2.2% standard error, and the first-order solver's own bias
    assert done.report.evaluations == [600] * count


def test_ancestral_sampling_without_guidance_keeps_the_data() -> None:
    from diffusers import DDPMScheduler

    mixture, count = line((1.0, math.sqrt(2))), 4000
    rows = {"positive": torch.tensor([1.0, 0.0]).expand(count, -1)}
    scheduler = DDPMScheduler(clip_sample=False, beta_start=1e-4, beta_end=0.02)
    done = sample(
        MixtureDenoiser(mixture), gs.Stack(), scheduler, conditions=rows, shape=(1,), seeds=range(count), steps=100
    )
    assert abs(float(done.x.var()) - 1) < 0.08


def test_a_mixture_without_noise_answers_what_it_tends_to() -> None:
    mixture = GaussianMixture.example()
    x = mixture.means[:1] + 0.1
    conditions = mixture.condition(0, 2)[None]
    for emitted in (EPSILON, FLOW):
        model = MixtureDenoiser(mixture, emitted)
        at, near = (model(x, Level.flow(sigma), conditions) for sigma in (0.0, 1e-4))
        assert at.isfinite().all()
        assert torch.allclose(at, near, atol=1e-2)
