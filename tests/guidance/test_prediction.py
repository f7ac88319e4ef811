"""Levels and parameterizations against the textbook formulas."""

from __future__ import annotations

import math

import pytest
import torch

from guidestack.guidance.errors import RuleError
from guidestack.guidance.prediction import EPSILON, FLOW, X0, Level, Parameterization, Prediction, V, convert

X0_, EPS = torch.linspace(-2, 2, 24, dtype=torch.float64).reshape(2, 3, 4), torch.sin(torch.arange(24.0).double() * 3)
EPS = EPS.reshape(2, 3, 4)
LEVELS = [
    Level.vp(0.9),
    Level.vp(0.1),
    Level.vp(1e-4),
    Level.ve(0.05),
    Level.ve(14.6),
    Level.flow(0.3),
    Level.flow(0.98),
]


def textbook(name: str, level: Level) -> torch.Tensor:
    alpha_bar = level.alpha**2 / (level.alpha**2 + level.sigma**2)
    if name == "v":
        return math.sqrt(alpha_bar) * EPS - math.sqrt(1 - alpha_bar) * X0_
    sd, sigma = 0.5, level.sigma
    if name.startswith("edm"):
        # Karras et al. 2022, table 1, in their scaling: D = c_skip x + c_out F
        x = X0_ + sigma * EPS
        f = (X0_ - sd**2 / (sigma**2 + sd**2) * x) / (sigma * sd / math.sqrt(sigma**2 + sd**2))
        return -f if name == "edm-v" else f
    return {"epsilon": EPS, "x0": X0_, "flow": EPS - X0_}[name]


@pytest.mark.parametrize("level", LEVELS, ids=str)
@pytest.mark.parametrize("name", ["epsilon", "x0", "v", "flow", "edm", "edm-v"])
def test_every_reading_of_every_network(name: str, level: Level) -> None:
    if name.startswith("edm") and level.alpha != 1:
        return  # preconditioning is defined in VE scaling
    x = level.noised(X0_, EPS)
    prediction = Prediction(textbook(name, level), x, level, Parameterization(name))
    assert torch.allclose(prediction.denoised, X0_, rtol=1e-9, atol=1e-9)
    assert torch.allclose(prediction.noise, EPS, rtol=1e-9, atol=1e-9)
    velocity = textbook("flow" if level.path == "flow" else "v", level)
    assert torch.allclose(prediction.velocity, velocity, rtol=1e-9, atol=1e-9)
    for space, value in (("denoised", X0_), ("noise", EPS), ("velocity", velocity)):
        back = prediction.replace(space, value)  # type: ignore[arg-type]
        assert torch.allclose(back.native, prediction.native, rtol=1e-8, atol=1e-8)


def test_differences_scale_as_the_sheet_says() -> None:
    """dD = -(sigma/alpha) deps = -sigma dv (VP) = -s dv (flow)."""
    for level, source, slope in (
        (Level.vp(0.3), EPSILON, -Level.vp(0.3).k_sigma),
        (Level.vp(0.3), V, -Level.vp(0.3).sigma),
        (Level.flow(0.6), FLOW, -0.6),
    ):
        x = level.noised(X0_, EPS)
        d = [convert(output, x, level, source, X0) for output in (EPS, EPS + 1)]
        assert torch.allclose(d[1] - d[0], torch.full_like(EPS, slope))


def test_types_are_wide_inside_and_the_networks_own_outside() -> None:
    level = Level.vp(0.5)
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        prediction = Prediction(EPS.to(dtype), X0_.to(dtype), level, EPSILON)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        assert prediction.denoised.dtype == prediction.read("native").dtype == wide
        assert prediction.replace("denoised", prediction.denoised).native.dtype == dtype
        assert prediction.read("any") is prediction.native


def test_a_singular_reading_is_not_finite_and_a_regular_one_is() -> None:
    pure = Level(0.0, 1.0)
    x = torch.ones(1, 4)
    assert not torch.isfinite(Prediction(x, x, pure, EPSILON).denoised).any()
    assert torch.isfinite(Prediction(x, x, pure, V).denoised).all()


def test_what_levels_and_parameterizations_refuse() -> None:
    with pytest.raises(RuleError, match="alpha >= 0"):
        Level(-1.0, 1.0)
    with pytest.raises(RuleError, match="alpha >= 0"):
        Level(1.0, math.nan)
    with pytest.raises(RuleError, match="unknown parameterization 'epsillon'; did you mean 'epsilon'"):
        Parameterization("epsillon")
    with pytest.raises(RuleError, match="sigma_data"):
        Parameterization("edm", 0.0)
    with pytest.raises(RuleError, match="unknown space 'score'"):
        Prediction(EPS, X0_, LEVELS[0], EPSILON).read("score")  # type: ignore[arg-type]
