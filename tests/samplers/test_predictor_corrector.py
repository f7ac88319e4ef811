"""Predictor-corrector sampling of score-based SDEs: a sampler, and `Langevin` by its signal-to-noise ratio."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

import guidestack as gs
from guidestack.guidance import GaussianMixture
from guidestack.guidance.testing import MixtureDenoiser

SIZE, VARIANCE = 5000, 0.25


def variance(stack: str, kind: Any) -> float:
    """Of 5000 independent numbers N(0, 0.25), made in 12 steps."""
    one = torch.ones(1, dtype=torch.float64)
    model = MixtureDenoiser(GaussianMixture(torch.zeros(1, SIZE, dtype=torch.float64), VARIANCE**0.5 * one, one))
    scheduler = kind(beta_start=1e-4, beta_end=0.02, clip_sample=False, timestep_spacing="trailing")
    made = gs.sample(
        model, stack, scheduler, conditions={"positive": torch.ones(1, 1)}, shape=(SIZE,), seeds=[0], steps=12,
        dtype=torch.float64,
    )  # fmt: skip
    assert made.report.evaluations == [12 if stack == "stack()" else 12 + 11 * int(stack[9])]
    return float(made.x.var())


@pytest.mark.parametrize("kind", [DDIMScheduler, DDPMScheduler])
def test_a_corrector_brings_a_coarse_sampler_nearer_to_the_law(kind: Any) -> None:
    """Both predictors fall short of the variance; r is 0.16, as of the authors' CIFAR-10 models."""
    none, one, five = (variance(stack, kind) for stack in ("stack()", "langevin(1, snr=0.16)", "langevin(5, snr=0.16)"))
    assert none < one < five < VARIANCE
