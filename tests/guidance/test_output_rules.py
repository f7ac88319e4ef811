"""Rules of the output: their limits, diffusers' guiders on the same tensors, and where those guiders are wrong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

import guidestack as gs
from guidestack.guidance.errors import RuleError
from guidestack.guidance.prediction import EPSILON, FLOW, Level, Parameterization, Prediction, V
from guidestack.guidance.query import NEGATIVE, POSITIVE, Predictions
from guidestack.guidance.step import Estimate, Run, State, Step

SHAPE = (3, 4, 8, 8)
STEPS = 10
FLOWING, NOISY = Level.flow(0.6), Level.vp(0.3)


def normal(seed: int, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def alike(seed: int, shape: tuple[int, ...] = SHAPE) -> tuple[Tensor, Tensor]:
    """Two answers as a network gives them: much the same."""
    c = normal(seed, shape)
    return c, c + 0.3 * normal(seed + 1, shape)


def updated(
    rule: gs.Rule,
    c: Tensor,
    u: Tensor,
    emits: Parameterization = FLOW,
    level: Level = FLOWING,
    index: int = 4,
    state: State | None = None,
    x: Tensor | None = None,
) -> tuple[Tensor, State, Mapping[str, Tensor]]:
    """The guided native output, the state after it, and the traces."""
    x = normal(99, c.shape).to(c.dtype) if x is None else x
    run = Run(tuple(c.shape), c.dtype, steps=STEPS, seeds=tuple(range(len(c))), emits=emits)
    read = {POSITIVE: Prediction(c, x, level, emits), NEGATIVE: Prediction(u, x, level, emits)}
    predictions = Predictions(read, {query: query for query in read}, read[POSITIVE])
    before = rule.init(run) if state is None else state
    estimate, after = rule.update(Estimate(read[POSITIVE]), predictions, Step(run, index, level, time=0.5), before)
    return estimate.prediction.native, after, estimate.traces


def guider(name: str, step: int = 4, **options: Any) -> Any:
    """A guider of diffusers at a step of a run."""
    import diffusers.guiders

    made = getattr(diffusers.guiders, name)(**options)
    made.set_state(step=step, num_inference_steps=STEPS, timestep=torch.tensor(500))
    return made


def same(seen: Tensor, wanted: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(seen, wanted, rtol=tolerance, atol=tolerance)


# --- CFG-Zero* ----------------------------------------------------------------------------------------------------


def test_cfg_zero_is_diffusers_guider_on_a_flow_model() -> None:
    c, u = alike(0)
    c, u = c.float(), u.float()  # what the guider computes its factor in
    seen, _, _ = updated(gs.CFGZero(5.5), c, u)
    same(seen, guider("ClassifierFreeZeroStarGuidance", guidance_scale=5.5).forward(c, u).pred, 1e-5)


def test_cfg_zero_of_proportional_answers_is_the_prompts() -> None:
    u = normal(2)
    for k in (0.5, 1.0, -2.0):
        same(updated(gs.CFGZero(7), k * u, u)[0], k * u)


def test_cfg_zero_adds_what_is_perpendicular_to_the_contrast() -> None:
    c, u = alike(3)
    added = updated(gs.CFGZero(4), c, u)[0] - c
    assert ((added * u).flatten(1).sum(1).abs() < 1e-12).all()


def test_a_contrast_of_zero_is_no_contrast() -> None:
    c = normal(4)
    same(updated(gs.CFGZero(4), c, torch.zeros_like(c))[0], c + 3 * c)


def test_zeroed_steps_leave_the_sample_where_it_is() -> None:
    """Also of a scale of 1, and in as many steps as were asked for; diffusers' guider agrees for its default of one."""
    c, u = alike(5)
    for rule in (gs.CFGZero(4, zero_steps=2), gs.CFGZero(1, zero_steps=2)):
        zeroed = [not updated(rule, c, u, index=index)[0].any() for index in range(4)]
        assert zeroed == [True, True, False, False]
    theirs = guider("ClassifierFreeZeroStarGuidance", step=0, guidance_scale=4.0)
    assert torch.equal(theirs.forward(c, u).pred, updated(gs.CFGZero(4, zero_steps=1), c, u, index=0)[0])
    scheduler = flow_scheduler()
    x = normal(6).float()
    scheduler.step(torch.zeros_like(x), scheduler.timesteps[0], x)
    assert torch.equal(scheduler.step(torch.zeros_like(x), scheduler.timesteps[1], x).prev_sample, x)


def flow_scheduler() -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(STEPS)
    return scheduler


@pytest.mark.parametrize("emits", [EPSILON, V])
def test_zero_init_is_refused_where_zero_is_no_standstill(emits: Parameterization) -> None:
    c, u = alike(7)
    with pytest.raises(RuleError, match=r"zero_steps is for flow models.*emits '(epsilon|v)'") as caught:
        updated(gs.During(gs.CFGZero(4, zero_steps=1), progress=(0, 1)), c, u, emits, NOISY)
    assert "\n" not in str(caught.value)
    updated(gs.CFGZero(4), c, u, emits, NOISY)


def test_zero_init_is_refused_before_the_first_step_of_a_pipeline(pipe: Any) -> None:
    with pytest.raises(RuleError, match="zero_steps is for flow models"):
        gs.guide(pipe, "cfg_zero(4, zero_steps=1)")("a cat", num_inference_steps=2)


def test_diffusers_zero_init_with_its_rescale_is_not_finite() -> None:
    """0 times infinity, in its default way to rescale; a stack has nothing to rescale in a zeroed step."""
    c, u = alike(8)
    theirs = guider("ClassifierFreeZeroStarGuidance", step=0, guidance_scale=4.0, guidance_rescale=0.7)
    assert theirs.forward(c, u).pred.isnan().all()
    ours, _, _ = updated(gs.CFGZero(4, zero_steps=1) | gs.Rescale(0.7), c, u, index=0)
    assert not ours.any()


def test_diffusers_cfg_zero_depends_on_what_the_network_emits() -> None:
    """The same network read as one of noise: its guider fits noises and makes another picture."""
    c, u = alike(9)
    x = normal(99)
    noises = [x + (1 - 0.6) * one for one in (c, u)]  # eps = x + (1 - s) v on the flow's path
    ours = updated(gs.CFGZero(4), c, u)[0]
    same(updated(gs.CFGZero(4), *noises, EPSILON, FLOWING)[0], x + 0.4 * ours, 1e-10)
    theirs = guider("ClassifierFreeZeroStarGuidance", guidance_scale=4.0)
    assert (theirs.forward(*noises).pred - (x + 0.4 * theirs.forward(c, u).pred)).abs().max() > 0.1
