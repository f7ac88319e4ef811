"""Rules that look elsewhere before the estimate: against straight-line computations on the mixture."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import guidestack as gs
from guidestack.guidance import Level, check_move, check_rule
from guidestack.guidance.errors import RuleError
from guidestack.guidance.step import Run
from guidestack.guidance.testing.checks import FAMILIES, Oracle, oracle_run
from guidestack.guidance.turn import Sight

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


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_rectified_guidance_is_that_of_where_the_prompt_leads(share: float) -> None:
    oracle = Oracle(levels=FAMILIES["flow"])
    seen = oracle_run(gs.RectifiedCFG(2, ahead=share), oracle)
    for index, (x, level) in enumerate(zip(seen.inputs, oracle.levels, strict=True)):
        after = oracle.after(index)
        if share < 1:
            after = Level.flow(level.sigma + share * (after.sigma - level.sigma))
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


@pytest.mark.parametrize("oracle", ORACLES, ids=FAMILIES)
@pytest.mark.parametrize("inverse", [0.0, 0.5, 1.0])
def test_foresight_is_a_long_guided_step_and_its_inversion(oracle: Oracle, inverse: float) -> None:
    steps = len(oracle.levels)
    rule = gs.FSG(5, ((0, 2.4 / steps, 2), (3 / steps, 1, 1)), inverse)
    x, seen = oracle.start(), oracle_run(gs.CFG(3) | rule, oracle)
    for index, level in enumerate(oracle.levels):
        # Two steps ahead from the first, twice; from the fourth to the last level, once.
        for _ in range({0: 2, 3: 1}.get(index, 0)):
            there = oracle.levels[2 if index == 0 else steps - 1]
            lower = ddim(oracle, x, level, there, 5)
            x = ddim(oracle, lower, there, level, inverse)
        assert torch.allclose(seen.inputs[index], x, atol=1e-8, rtol=1e-8)
        x = ddim(oracle, x, level, oracle.after(index), 3)
    assert seen.run.report.evaluations == [2 * steps + 3 * (2 + (1 if inverse in (0, 1) else 2))] * 3


def test_foresight_of_one_scale_hardly_moves() -> None:
    """Down and up under the same guidance: what is left is of the second order in the way."""
    moved = []
    for length in (2, 4):
        levels = tuple(Level.ve(10 * (0.05 / 10) ** (place / 80)) for place in range(80))
        oracle = Oracle(levels=levels)
        seen = oracle_run(gs.FSG(3, ((0, length / 80, 1),), inverse=3), oracle)
        moved.append(float((seen.inputs[0] - oracle.start()).abs().max()))
    assert 3 * moved[0] < moved[1] < 5 * moved[0]


def flow_step(oracle: Oracle, x: Tensor, level: Level, condition: str, time: float) -> Tensor:
    """An Euler step of the flow over `time`, in its coordinates, with the network at the level of x."""
    size = level.alpha + level.sigma
    x0 = clean(oracle, x, level, condition)
    return x + time * size * ((x - level.alpha * x0) / level.sigma - x0)


def gap(oracle: Oracle, x: Tensor, level: Level, after: Level) -> Tensor:
    """How far half a step back and half a step on lead."""
    half = (after.sigma / (after.alpha + after.sigma) - level.sigma / (level.alpha + level.sigma)) / 2
    return flow_step(oracle, flow_step(oracle, x, level, "negative", -half), level, "positive", half) - x


@pytest.mark.parametrize("oracle", ORACLES, ids=FAMILIES)
@pytest.mark.parametrize("damping", [1.0, 0.7])
@pytest.mark.parametrize("anderson", [False, True])
def test_projections_are_half_steps_back_and_on(oracle: Oracle, anderson: bool, damping: float) -> None:
    seen = oracle_run(gs.CFG(3) | gs.CFGMP(3, anderson, damping), oracle)
    x = oracle.start()
    for index, level in enumerate(oracle.levels):
        after = oracle.after(index)
        x = oracle.start() if index == 0 else ddim(oracle, x, oracle.levels[index - 1], level, 3)
        earlier: tuple[Tensor, Tensor] | None = None
        for _ in range(3):
            f = gap(oracle, x, level, after)
            moved = x + damping * f
            if anderson and earlier is not None:
                change = (f - earlier[1]).flatten(1)
                theta = (f.flatten(1) * change).sum(1) / change.square().sum(1)
                theta = theta.nan_to_num().reshape(-1, 1, 1, 1)
                moved = (1 - theta) * moved + theta * (earlier[0] + damping * earlier[1])
            earlier, x = (x, f), moved
        assert torch.allclose(seen.inputs[index], x, atol=1e-7, rtol=1e-7)
    assert seen.run.report.evaluations == [len(oracle.levels) * (2 + 3 * 2)] * 3


def test_projections_hardly_move_where_both_conditions_agree() -> None:
    """Half a step back and on with one velocity: what is left is of the second order in the step."""
    moved = []
    for count in (40, 80):
        oracle = Oracle(levels=tuple(Level.flow(1 - place / (count + 1)) for place in range(1, count + 1)))
        seen = oracle_run(gs.CFGMP(1, against="positive"), oracle)
        moved.append(float((seen.inputs[0] - oracle.start()).abs().max()))
    assert 3 * moved[1] < moved[0] < 5 * moved[1]


@pytest.mark.parametrize(
    "text", ["fsg(5)", "fsg(3, ((0.2, 0.5, 2),), inverse=0.5)", "cfg_mp()", "cfg_mp(3, anderson=True, damping=0.7)"]
)
def test_foresight_and_projections_keep_the_invariants(text: str) -> None:
    results = check_move(gs.parse(text).rules[0])
    assert {name[:3] for name, result in results.items() if result != "passed"} <= {"10.", "12."}


def test_long_jumps_are_undone_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """With noise of 0: each jump is DDIM steps and a scaling back; the last one has what is left of the steps."""
    monkeypatch.setattr(Sight, "noise", lambda self, like, purpose: torch.zeros_like(like))
    for levels in FAMILIES.values():
        oracle = Oracle(levels=levels[:5])
        seen = oracle_run(gs.CFG(3) | gs.Recur(3, length=3), oracle)
        x = oracle.start()
        for index, level in enumerate(oracle.levels):
            if index % 3 == 0:
                for _ in range(2):
                    lower = x
                    jump = range(index, min(index + 3, 5))
                    for place in jump:
                        lower = ddim(oracle, lower, oracle.levels[place], oracle.after(place), 3)
                    x = level.alpha / oracle.after(jump[-1]).alpha * lower
            assert torch.allclose(seen.inputs[index], x, atol=1e-8, rtol=1e-8)
            x = ddim(oracle, x, level, oracle.after(index), 3)
        assert seen.run.report.evaluations == [3 * 2 * 5] * 3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: gs.FSG(5, ((0, 0.5),)), "schedule is a list of places"),
        (lambda: gs.FSG(5, ((0, 0, 1),)), "schedule is a list of places"),
        (lambda: gs.FSG(5, ((1, 0.5, 1),)), "schedule is a list of places"),
        (lambda: gs.FSG(5, ((0, 0.5, 1.5),)), "schedule is a list of places"),
        (lambda: gs.FSG(5, "early"), "schedule is a list of places"),  # type: ignore[arg-type]
        (lambda: gs.CFGMP(-1), "times"),
        (lambda: gs.CFGMP(2, damping=0), "damping"),
        (lambda: gs.CFGMP(2, anderson="yes"), "anderson"),  # type: ignore[arg-type]
        (lambda: gs.Recur(2, length=0), "length"),
        (lambda: gs.RectifiedCFG(2, ahead=0), "ahead"),
        (lambda: gs.RectifiedCFG(2, ahead=1.5), "ahead"),
    ],
)
def test_what_cannot_be_is_one_line(make: Any, message: str) -> None:
    with pytest.raises(RuleError, match=message) as said:
        make()
    assert "\n" not in str(said.value)
