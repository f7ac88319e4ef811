"""The laws that samplers have under moves, against closed forms.

In variance exploding coordinates all data are N(0, 2) and those of the prompt N(0, 1). From infinite noise, under
guidance of scale w:

    CFG and the probability-flow ODE (DDIM)     2^(1 - w)
    CFG and the reverse SDE (DDPM)              (2 - 2^(2 - 2w)) / (2w - 1)
    the powered law p_c^w p_u^(1 - w)           2 / (w + 1)

Every step is linear in x and in its noise, so that a variance is carried along exactly: x has a number for the standard
deviation so far, one for the noise of a turn and one for that of a step, which are joined after each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from guidestack.guidance import GaussianMixture, Level
from guidestack.guidance.keyed import Keys
from guidestack.guidance.network import CallableNetwork
from guidestack.guidance.notation.presets import as_stack
from guidestack.guidance.prediction import EPSILON
from guidestack.guidance.run import GuidedRun
from guidestack.guidance.step import Estimate, Run, Step
from guidestack.guidance.testing import MixtureDenoiser
from guidestack.guidance.turn import Sight

DATA = {"positive": 1.0, "null": 2.0, "negative:1": 3.0}

pytestmark = pytest.mark.slow


def mixture(size: int) -> GaussianMixture:
    """The laws, of so many independent numbers."""
    stds = torch.tensor(list(DATA.values()), dtype=torch.float64).sqrt()
    return GaussianMixture(torch.zeros(len(DATA), size).double(), stds, torch.ones(len(DATA)).double())


def rows(batch: int) -> dict[str, Tensor]:
    return {name: torch.eye(len(DATA))[[place]].expand(batch, -1) for place, name in enumerate(DATA)}


@cache
def levels(steps: int, first: float = 400.0, last: float = 0.004) -> tuple[Level, ...]:
    """Noise levels in geometric steps, then none."""
    return (*(Level.ve(first * (last / first) ** (place / steps)) for place in range(steps + 1)), Level.ve(0.0))


class Carried:
    """A run in which a sample is a standard deviation: the loop of `GuidedRun.moved`. x has a row for each source."""

    def __init__(self, levels: Sequence[Level], stochastic: bool = False) -> None:
        self.levels, self.stochastic, self.index = levels, stochastic, 0
        self.model = MixtureDenoiser(mixture(1))

    def network(self, x: Tensor, level: Level, keys: Keys) -> CallableNetwork:
        return CallableNetwork({"main": self.model}, x, level, rows(3), EPSILON, {"negative": "null"}, keys)

    def stepped(self, x: Tensor, estimate: Estimate, keys: Keys, ahead: int = 0) -> Tensor:
        """DDIM, or the ancestral step of DDPM; in a turn joined, as a further step has a noise of its own."""
        stepped = self._stepped(x, estimate, self.index + ahead)
        return joined(stepped) if keys.turn else stepped

    def later(self, step: Step, ahead: int) -> Step:
        index = self.index + ahead
        here, after = self.levels[index], self.levels[index + 1]
        return replace(step, index=index, level=here, step_level=here, before=self.levels[index - 1], after=after)

    def _stepped(self, x: Tensor, estimate: Estimate, index: int) -> Tensor:
        here, after = self.levels[index], self.levels[index + 1]
        if not self.stochastic:
            return estimate.prediction.denoised + after.sigma * estimate.prediction.noise
        share = (after.sigma / here.sigma) ** 2
        fresh = after.sigma * math.sqrt(1 - share)
        denoised = estimate.prediction.denoised
        return denoised + share * (x - denoised) + fresh * source(2)


def source(place: int) -> Tensor:
    """A deviation of 1 from one source."""
    return torch.eye(3, dtype=torch.float64)[:, [place]]


def joined(x: Tensor) -> Tensor:
    """The deviation of the sum of all sources."""
    return x.square().sum().sqrt() * source(0)


@pytest.fixture(autouse=True)
def noise_is_a_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sight, "noise", lambda self, like, purpose: source(1))


def variance(stack: str, steps: int, stochastic: bool = False, first: float = 400.0) -> float:
    """Of the law that a run ends with."""
    loop = Carried(levels(steps, first), stochastic)
    run = GuidedRun(
        as_stack(stack), Run((3, 1), torch.float64, steps=len(loop.levels) - 1, seeds=(0, 1, 2)), moves=True
    )
    x = math.sqrt(1 + first**2) * source(0)
    turn = run._turn

    def joining(*given: Any) -> Any:
        moved, state = turn(*given)
        return joined(moved), state

    run._turn = joining  # type: ignore[method-assign]
    for index, level in enumerate(loop.levels[:-1]):
        loop.index, before = index, loop.levels[index - 1] if index else None
        at = index, level, 0, None, loop.levels[index + 1], before
        x = run.moved(loop, x, run.step(*at))
        estimate = run.estimate(loop.network(x, level, Keys((0, 1, 2))), x, *at)
        x = joined(loop.stepped(x, estimate, Keys((0, 1, 2))))
    return float(x[0, 0] ** 2)


def limit(stack: str, steps: int, **more: Any) -> float:
    """The variance for ever more steps, of a method of the first order: two runs, extrapolated."""
    return 2 * variance(stack, 2 * steps, **more) - variance(stack, steps, **more)


@pytest.mark.parametrize(("w", "ode", "sde", "powered"), [(1.5, 0.7071, 0.75, 0.8), (3, 0.25, 0.3875, 0.5)])
def test_the_three_laws_of_one_scale(w: float, ode: float, sde: float, powered: float) -> None:
    assert limit(f"cfg({w})", 200) == pytest.approx(ode, abs=1e-3)
    assert limit(f"cfg({w})", 200, stochastic=True) == pytest.approx(sde, abs=1e-3)
    assert limit(f"langevin(1, power={2 * w - 1})", 200) == pytest.approx(sde, abs=1e-3)
    few, many = (limit(f"langevin({turns}, power={w})", 100) for turns in (10, 20))
    assert 2 * many - few == pytest.approx(powered, abs=2e-3)  # what is left falls as one over the Langevin steps


def test_under_cfg_the_score_is_that_of_its_scale() -> None:
    assert variance("cfg(3) | langevin(100)", 25) == pytest.approx(variance("langevin(100, power=3)", 25), abs=5e-3)


@pytest.mark.parametrize("stack", ["langevin(1)", "langevin(5, power=1)"])
def test_a_corrector_of_the_prompts_own_law_leaves_it(stack: str) -> None:
    assert limit(stack, 200) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize("stack", ["recur(3)", "recur(3, length=5)"])
def test_time_travel_without_guidance_keeps_the_law(stack: str, stochastic: bool) -> None:
    assert limit(stack, 100, stochastic=stochastic) == pytest.approx(1, abs=0.01)


def weighted(stack: str, steps: int, first: float = 400.0) -> float:
    """The variance under particles without number: weights exp(c x^2) make N(0, 1 / (1/v - 2c)) of N(0, v)."""
    loop, v = Carried(levels(steps, first), stochastic=True), 1 + first**2
    x, keys = source(0), Keys((0, 1, 2))
    run = GuidedRun(
        as_stack(stack), Run((3, 1), torch.float64, steps=len(loop.levels) - 1, seeds=(0, 1, 2)), moves=True
    )
    start = run.state
    for index, level in enumerate(loop.levels[:-1]):
        loop.index, run.state = index, start
        estimate = run.estimate(loop.network(x, level, keys), x, index, level, 0, None, loop.levels[index + 1], None)
        weights = estimate.traces["log_weight"]
        factor, _, fresh = loop.stepped(x, estimate, keys).flatten().tolist()
        v = factor**2 / (1 / v - 2 * float(weights[0] - weights[1])) + fresh**2
    return v


@pytest.mark.parametrize(
    ("power", "law"),
    [
        ("1.5", 0.8),  # guidance
        ("3", 0.5),
        ("(('positive', 2),)", 0.5),  # annealing
        ("(('positive', 1), ('null', 1))", 2 / 3),  # a product
        ("(('positive', 1.5), ('null', -1))", 1.0),  # a negative
        ("(('positive', 2), ('null', -0.5))", 1 / 1.75),
        ("(('positive', 1.5), ('negative:1', 0.5), ('null', -1))", 1 / (1.5 + 0.5 / 3 - 1 / 2)),  # three ways
    ],
)
def test_particles_have_the_law_of_their_exponents(power: str, law: float) -> None:
    stack = f"resample(3, {power})"
    assert 2 * weighted(stack, 800) - weighted(stack, 400) == pytest.approx(law, abs=5e-3)
