"""Data in the cube: folding, the score of the reflected process, and laws of its samples."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from guidestack.guidance.errors import CompositionError, InputError
from guidestack.guidance.prediction import Level
from guidestack.samplers.reflected import fold, kernel, reflected

PLACES = torch.tensor([0.02, 0.4, 0.97], dtype=torch.float64)
WEIGHTS = torch.tensor([0.02, 0.03, 0.05, 0.1, 0.2, 0.25, 0.35], dtype=torch.float64)
SIGMAS = [5 * (0.01 / 5) ** (step / 60) for step in range(61)]


def model(x: Tensor, level: Level, conditions: Tensor) -> Tensor:
    """Minus sigma times the exact score of points with weights, number by number."""
    density, slope = kernel(x.unsqueeze(-1), PLACES, level.sigma)
    weights = conditions.unsqueeze(1)
    return -level.sigma * (weights * slope).sum(-1) / (weights * density).sum(-1)


def told(batch: int) -> dict[str, Tensor]:
    weights = {"positive": [0.2, 0.5, 0.3], "null": [0.4, 0.3, 0.3]}
    return {name: torch.tensor(one, dtype=torch.float64).expand(batch, -1) for name, one in weights.items()}


def drawn(stack: str = "stack()", seeds: Any = range(2), size: int = 2000, **options: Any) -> Tensor:
    seeds = list(seeds)
    own = {"conditions": told(len(seeds)), "shape": (size,), "seeds": seeds, "dtype": torch.float64, **options}
    return reflected(model, stack, own.pop("sigmas", SIGMAS), **own).x


def test_fold() -> None:
    x = torch.linspace(-7, 7, 2801, dtype=torch.float64)
    assert float(fold(x).min()) >= 0
    assert float(fold(x).max()) <= 1
    torch.testing.assert_close(fold(x), fold(-x))
    torch.testing.assert_close(fold(x), fold(x + 2))
    inside = x[(x >= 0) & (x <= 1)]
    assert torch.equal(fold(inside), inside)


def test_the_two_forms_of_the_kernel_agree_and_are_densities() -> None:
    x = torch.linspace(0, 1, 1001, dtype=torch.float64)
    edge = math.sqrt(2 * 0.01)
    for x0 in (0.0, 0.1, 0.7):
        at = torch.tensor(x0, dtype=torch.float64)
        images, series = (kernel(x, at, edge * more) for more in (1 - 1e-9, 1 + 1e-9))
        torch.testing.assert_close(images[0], series[0], atol=1e-6, rtol=0)
        torch.testing.assert_close(images[1], series[1], atol=1e-5, rtol=0)
        assert float(torch.trapezoid(images[0], x)) == pytest.approx(1, abs=1e-4)
        by_differences = (kernel(x + 1e-6, at, 0.05)[0] - kernel(x - 1e-6, at, 0.05)[0]) / 2e-6
        torch.testing.assert_close(kernel(x, at, 0.05)[1], by_differences, atol=1e-5, rtol=1e-5)
        walls = kernel(torch.tensor([0.0, 1.0], dtype=torch.float64), at, 0.05)[1]
        torch.testing.assert_close(walls, torch.zeros(2, dtype=torch.float64), atol=1e-9, rtol=0)  # nothing flows out
    assert torch.allclose(kernel(x, torch.tensor(0.3), 5.0)[0], torch.ones(1, dtype=torch.float64))  # uniform


@pytest.mark.parametrize("stochastic", [True, False])
def test_samples_have_the_law_of_the_data(stochastic: bool) -> None:
    """Shares of points, two of them at walls."""
    x = drawn(stochastic=stochastic).flatten()
    assert float(x.min()) >= 0
    assert float(x.max()) <= 1
    shares = torch.bincount((x.unsqueeze(1) - PLACES).abs().argmin(1), minlength=3) / len(x)
    torch.testing.assert_close(shares.double(), told(1)["positive"][0], atol=0.04, rtol=0)
    assert float((x.unsqueeze(1) - PLACES).abs().amin(1).mean()) < 0.02


def test_guidance_stays_in_the_cube_and_leads_away_from_the_contrast() -> None:
    one, three = (drawn(f"cfg({scale})", seeds=[1]) for scale in (1, 3))
    assert float(three.min()) >= 0
    assert float(three.max()) <= 1
    near = [float(((x - PLACES[1]).abs() < 0.1).double().mean()) for x in (one, three)]
    assert near[1] > near[0] + 0.1


def test_a_sample_depends_on_its_seed_alone() -> None:
    both = drawn("cfg(2)", seeds=[3, 8], size=5)
    assert torch.equal(drawn("cfg(2)", seeds=[8], size=5)[0], both[1])


@pytest.mark.parametrize("sigmas", [[1.0], [1.0, 2.0], [1.0, 0.0], "ab"])
def test_bad_levels(sigmas: Any) -> None:
    with pytest.raises(InputError, match="falling numbers above 0"):
        drawn(sigmas=sigmas)


def test_bad_runs() -> None:
    with pytest.raises(InputError, match="seeds is empty"):
        drawn(seeds=[])
    with pytest.raises(CompositionError, match="does not support that"):
        drawn("langevin(1)")


def test_the_comparison_of_answers_to_bounds() -> None:
    from guidestack.scripts.dev.bounded import PLACES, STACKS, compared, distance

    found = compared(3, 2, 6)
    assert set(found) > set(STACKS)
    assert all(0 < away < 1 for away in found.values())
    law = (3 * WEIGHTS.log()).softmax(0)
    exact = torch.repeat_interleave(PLACES, (law * 100_000).round().long())
    assert distance(exact, 3) < 1e-3
