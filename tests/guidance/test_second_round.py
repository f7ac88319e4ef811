"""Rules that look elsewhere before the estimate: against straight-line computations on the mixture."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import guidestack as gs
from guidestack.guidance import Level, check_move, check_rule
from guidestack.guidance.errors import RuleError
from guidestack.guidance.step import Run
from guidestack.guidance.testing.checks import FAMILIES, Oracle, oracle_run

ORACLES = [Oracle(levels=levels) for levels in FAMILIES.values()]


def clean(oracle: Oracle, x: Tensor, level: Level, condition: str) -> Tensor:
    return oracle.mixture.denoised(x, level, oracle.conditions()[condition])


def noise(oracle: Oracle, x: Tensor, level: Level, scale: float) -> Tensor:
    c, u = (clean(oracle, x, level, name) for name in ("positive", "negative"))
    return (x - level.alpha * (u + scale * (c - u))) / level.sigma


def ddim(oracle: Oracle, x: Tensor, level: Level, after: Level, scale: float) -> Tensor:
    eps = noise(oracle, x, level, scale)
    return after.alpha * (x - level.sigma * eps) / level.alpha + after.sigma * eps


@pytest.mark.parametrize("oracle", ORACLES, ids=FAMILIES)
@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0])
def test_a_zigzag_is_a_guided_step_and_an_inversion(oracle: Oracle, scale: float) -> None:
    x, seen = oracle.start(), oracle_run(gs.CFG(3) | gs.ZSampling(scale), oracle)
    for index, (level, after) in enumerate(zip(oracle.levels, oracle.levels[1:], strict=False)):
        lower = ddim(oracle, x, level, after, 3)
        if level.path == "flow":
            eps = noise(oracle, lower, level, scale)
            velocity = eps - (lower - level.sigma * eps) / level.alpha
            x = lower + (level.sigma - after.sigma) * velocity
        else:
            held = lower * math.hypot(level.alpha, level.sigma) / math.hypot(after.alpha, after.sigma)
            eps = noise(oracle, held, level, scale)
            x = level.alpha * (lower / after.alpha + (level.k_sigma - after.k_sigma) * eps)
        assert torch.allclose(seen.inputs[index], x, atol=1e-8, rtol=1e-8)
        x = ddim(oracle, x, level, after, 3)
    assert seen.run.report.evaluations == [len(oracle.levels) * (2 + 2 + (1 if scale in (0, 1) else 2))] * 3


def test_a_zigzag_of_one_scale_hardly_moves() -> None:
    """Down and up under the same guidance: what is left is of the second order in the step."""
    moved = []
    for count in (25, 50):
        levels = tuple(Level.ve(10 * (0.05 / 10) ** (place / count)) for place in range(count))
        run, still = (oracle_run(stack, Oracle(levels=levels)) for stack in (gs.CFG(3) | gs.ZSampling(3), gs.CFG(3)))
        moved.append(float((run.inputs[-1] - still.inputs[-1]).abs().max()))
    assert moved[1] < 0.75 * moved[0]
    assert moved[1] < 0.1 * float((still.inputs[-1] - still.inputs[0]).abs().max())


@pytest.mark.parametrize("text", ["zigzag()", "zigzag(1)", "zigzag(0.5, times=2)"])
def test_zigzags_keep_the_invariants(text: str) -> None:
    results = check_move(gs.parse(text).rules[0])
    assert {name[:3] for name, result in results.items() if result != "passed"} == {"10.", "12."}


def test_rectified_guidance_is_that_of_where_the_prompt_leads() -> None:
    oracle = Oracle(levels=FAMILIES["flow"])
    seen = oracle_run(gs.RectifiedCFG(2), oracle)
    for index, (x, level) in enumerate(zip(seen.inputs, oracle.levels, strict=True)):
        after = oracle.after(index)
        there = ddim(oracle, x, level, after, 1)

        def velocity(x: Tensor, level: Level, condition: str) -> Tensor:
            x0 = clean(oracle, x, level, condition)
            return (x - level.alpha * x0) / level.sigma - x0

        wanted = velocity(x, level, "positive") + 2 * (
            velocity(there, after, "positive") - velocity(there, after, "negative")
        )
        assert torch.allclose(x - level.sigma * wanted, seen.denoised[index], atol=1e-8, rtol=1e-8)
    assert seen.run.report.evaluations == [3 * len(oracle.levels)] * 3
    assert seen.run.report.calls == 2 * len(oracle.levels)


def test_rectified_guidance_keeps_the_invariants() -> None:
    results = check_rule(gs.RectifiedCFG(2))
    assert {name[:3] for name, result in results.items() if result != "passed"} == {"10.", "12."}


def test_rectified_guidance_is_for_flows() -> None:
    with pytest.raises(RuleError, match="for flow models, and this network emits 'epsilon'; try cfgpp"):
        gs.RectifiedCFG(2).init(Run((1,), emits=gs.guidance.EPSILON))
