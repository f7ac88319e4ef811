"""Rules of the output: their limits, diffusers' guiders on the same tensors, and where those guiders are wrong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import guidestack as gs
from guidestack.guidance.errors import RuleError
from guidestack.guidance.prediction import EPSILON, FLOW, X0, Level, Parameterization, Prediction, V
from guidestack.guidance.query import NEGATIVE, POSITIVE, Predictions
from guidestack.guidance.rules.threshold import _quantile
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


def network(x: Tensor, level: Level, conditions: Tensor) -> Tensor:
    return x * (0.5 + 0.1 * conditions.reshape(-1, 1, 1, 1))


def test_zero_init_in_a_plain_loop_is_for_flows() -> None:
    """With flow matching the zeroed step leaves x where it is; a scheduler that reads noise is refused at once."""
    from diffusers import EulerDiscreteScheduler

    conditions = {"positive": torch.ones(2), "null": torch.zeros(2)}
    told: dict[str, Any] = {"conditions": conditions, "shape": (1, 4, 4), "seeds": (0, 1), "steps": 3}
    seen: list[Tensor] = []

    def watch(x: Tensor, level: Level, conditions: Tensor) -> Tensor:
        seen.append(x[:2])
        return network(x, level, conditions)

    report = gs.sample(watch, "cfg_zero(4, zero_steps=1)", flow_scheduler(), **told).report
    assert report.evaluations == [5, 5]
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[1], seen[2])
    with pytest.raises(RuleError, match="zero_steps is for flow models"):
        gs.sample(network, "cfg_zero(4, zero_steps=1)", EulerDiscreteScheduler(), **told)


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


# --- TCFG ---------------------------------------------------------------------------------------------------------


def test_tcfg_is_diffusers_guider_on_a_network_of_noise() -> None:
    c, u = (one.float() for one in alike(10))
    seen, _, _ = updated(gs.TCFG(5.5), c, u, EPSILON, NOISY)
    theirs = guider("TangentialClassifierFreeGuidance", guidance_scale=5.5)
    same(seen, theirs.forward(c, u).pred, 1e-4)
    with pytest.raises(AttributeError):  # #14643
        _ = theirs.is_conditional


def test_tcfg_of_equal_answers_changes_nothing_and_of_perpendicular_ones_drops_the_smaller() -> None:
    c = normal(11)
    same(updated(gs.TCFG(4), c, c, EPSILON, NOISY)[0], c)
    u = normal(12)
    u = 0.5 * (u - (u * c).flatten(1).sum(1).reshape(-1, 1, 1, 1) / (c * c).flatten(1).sum(1).reshape(-1, 1, 1, 1) * c)
    same(updated(gs.TCFG(4), c, u, EPSILON, NOISY)[0], 4 * c)
    same(updated(gs.TCFG(4), 0.1 * u, c, EPSILON, NOISY)[0], c + 4 * (0.1 * u - c))  # the larger is kept
    assert not updated(gs.TCFG(4), 0 * c, 0 * c, EPSILON, NOISY)[0].any()


def test_diffusers_tcfg_depends_on_what_the_network_emits() -> None:
    c, u = alike(13)
    x = normal(99)
    velocities = [(one - x) / 0.4 for one in (c, u)]  # v of eps = x + (1 - s) v
    ours = updated(gs.TCFG(4), c, u, EPSILON, FLOWING)[0]
    same(updated(gs.TCFG(4), *velocities)[0], (ours - x) / 0.4, 1e-9)
    theirs = guider("TangentialClassifierFreeGuidance", guidance_scale=4.0)
    assert (theirs.forward(*velocities).pred - (theirs.forward(c, u).pred - x) / 0.4).abs().max() > 0.1


@pytest.mark.parametrize("near", [1e-4, 1e-6])
def test_tcfg_at_pure_noise_is_its_limit(near: float) -> None:
    """There both noises are x, and nothing is left of the formula."""
    c, u = alike(36)
    at, close = (updated(gs.TCFG(4), c, u, FLOW, Level.flow(sigma))[0] for sigma in (1.0, 1 - near))
    assert (at - close).abs().max() < 100 * near
    assert (at - updated(gs.CFG(4), c, u)[0]).abs().max() > 0.1
    assert torch.equal(updated(gs.EpsilonScaling(1.1), c, u, FLOW, Level.flow(1.0))[0], c)


# --- frequencies --------------------------------------------------------------------------------------------------


def blurred(x: Tensor) -> Tensor:
    row = torch.tensor([1.0, 4, 6, 4, 1], dtype=x.dtype) / 16
    kernel = (row[:, None] * row).expand(x.shape[1], 1, 5, 5)
    return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), kernel, groups=x.shape[1])


def doubled(x: Tensor) -> Tensor:
    """As kornia's pyrup."""
    return blurred(F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False))


def laplacian(x: Tensor, levels: int) -> list[Tensor]:
    """As kornia's build_laplacian_pyramid, for sides that are powers of two."""
    bands = []
    for _ in range(levels - 1):
        half = F.interpolate(blurred(x), scale_factor=0.5, mode="bilinear", align_corners=False)
        bands.append(x - doubled(half))
        x = half
    return [*bands, x]


@pytest.fixture
def _pyramids(monkeypatch: pytest.MonkeyPatch) -> None:
    """What diffusers' guider needs kornia for, which is not installed here."""
    import diffusers.guiders.frequency_decoupled_guidance as module

    monkeypatch.setattr(module, "_CAN_USE_KORNIA", True)
    monkeypatch.setattr(module, "build_laplacian_pyramid_func", laplacian)
    monkeypatch.setattr(module, "upsample_and_blur_func", doubled)


@pytest.mark.usefixtures("_pyramids")
def test_fdg_is_diffusers_guider() -> None:
    c, u = alike(14)
    theirs = guider("FrequencyDecoupledGuidance", guidance_scales=[10.0, 5.0])
    for emits, level in ((EPSILON, NOISY), (FLOW, FLOWING)):
        same(updated(gs.FDG(5, 10), c, u, emits, level)[0], theirs.forward(c, u).pred)


@pytest.mark.usefixtures("_pyramids")
def test_diffusers_fdg_fails_where_a_band_is_not_guided() -> None:
    c, u = alike(15)
    with pytest.raises(UnboundLocalError):
        guider("FrequencyDecoupledGuidance", guidance_scales=[1.0, 5.0]).forward(c, u)
    with pytest.raises(RuntimeError):
        guider("FrequencyDecoupledGuidance", guidance_scales=[10.0, 1.0]).forward(c, u)
    high, low = laplacian(c - u, 2)
    same(updated(gs.FDG(5, 1), c, u)[0], c + 4 * doubled(low))
    same(updated(gs.FDG(1, 10), c, u)[0], c + 9 * high)


@pytest.mark.parametrize("shape", [(2, 4, 26, 38), (2, 3, 7, 5), (2, 4, 1, 1), (2, 4, 2, 3), (2, 4, 3, 9, 8)])
@pytest.mark.parametrize("text", ["fdg(2, 5)", "fresca(3, high=1.5)"])
def test_bands_are_of_any_height_and_width(text: str, shape: tuple[int, ...]) -> None:
    """A constant difference is all low; frames of a video are pictures by themselves; odd sides are whole."""
    c, u = alike(16, shape)
    rule = gs.parse(text)
    seen = updated(rule, c, u)[0]
    assert seen.shape == c.shape
    low = 2.0 if text.startswith("fdg") else 3.0
    same(updated(rule, c, c - 0.7)[0], c + (low - 1) * 0.7)
    if len(shape) == 5:
        for frame in range(shape[2]):
            same(updated(rule, c[:, :, frame], u[:, :, frame])[0], seen[:, :, frame])


@pytest.mark.parametrize("scale", [4.0, 0.0, -2.0])
def test_equal_bands_are_cfg_to_the_bit(scale: float) -> None:
    c, u = alike(17)
    plain = updated(gs.CFG(scale), c, u)[0]
    assert torch.equal(updated(gs.FDG(scale, scale), c, u)[0], plain)
    assert torch.equal(updated(gs.FreSca(scale), c, u)[0], plain)
    assert torch.equal(updated(gs.SMCCFG(scale, gain=0), c, u)[0], plain)


@pytest.mark.parametrize("text", ["fdg(2, 5)", "fresca(3, high=1.5)"])
def test_packed_latents_have_no_frequencies_of_a_picture(text: str) -> None:
    c, u = alike(18, (2, 64, 16))
    with pytest.raises(RuleError, match=r"samples of shape \(64, 16\) have no height and width") as caught:
        updated(gs.parse(text), c, u)
    assert "\n" not in str(caught.value)


def test_the_cutoff_is_a_share_of_the_smaller_side() -> None:
    """A wave of 3 periods is low within 3 of the 8 halves of 16 pixels, and high within less."""
    wave = torch.cos(2 * torch.pi * 3 * torch.arange(16, dtype=torch.float64) / 16).expand(2, 1, 24, 16)
    c = normal(19, (2, 1, 24, 16))
    for cutoff, factor in ((3 / 8, 0.5), (2.9 / 8, 2.0)):
        seen = updated(gs.FreSca(3, low=0.5, high=2, cutoff=cutoff), c, c - wave)[0]
        same(seen, c + (3 * factor - 1) * wave)
    seen = updated(gs.FreSca(3, low=0.5, high=2, cutoff=0), c, c - wave - 1)[0]  # the mean alone is low
    same(seen, c + 5 * wave + 0.5)


# --- MAMBO-G, SMC-CFG, momentum -----------------------------------------------------------------------------------


PACKED = (3, 16, 4)


def picture_mambo(scale: float, alpha: float) -> Tensor:
    c, u = (one.flatten(1) for one in alike(20))
    size = (c - u).norm(dim=1, keepdim=True) / u.norm(dim=1, keepdim=True)
    return u + (1 + (scale - 1) * (-alpha * size).exp()) * (c - u)


def test_mambo_g_is_its_authors_guider_on_a_flow_model() -> None:
    """On latents packed into tokens: of pictures the guider of diffusers 0.42.1 takes a norm that torch has not."""
    c, u = alike(20, PACKED)
    seen, _, traces = updated(gs.MamboG(10, alpha=3), c, u)
    same(seen, guider("MagnitudeAwareGuidance", guidance_scale=10.0, alpha=3.0).forward(c, u).pred)
    ratio = (c - u).flatten(1).norm(dim=1) / u.flatten(1).norm(dim=1)
    same(traces["mambo_scale"], 1 + 9 * (-3 * ratio).exp())
    assert torch.equal(updated(gs.MamboG(10, alpha=3), c, c)[0], c)
    same(updated(gs.MamboG(4, alpha=0), c, u)[0], updated(gs.CFG(4), c, u)[0])
    with pytest.raises(RuntimeError, match="must be a 2-tuple"):
        guider("MagnitudeAwareGuidance").forward(*alike(20))
    same(updated(gs.MamboG(10, alpha=3), *alike(20))[0].reshape(PACKED[0], -1), picture_mambo(10, 3))


def test_diffusers_mambo_g_depends_on_what_the_network_emits() -> None:
    c, u = alike(21, PACKED)
    x = normal(99, PACKED)
    noises = [x + 0.4 * one for one in (c, u)]
    ours = updated(gs.MamboG(10, alpha=3), c, u)[0]
    same(updated(gs.MamboG(10, alpha=3), *noises, EPSILON, FLOWING)[0], x + 0.4 * ours, 1e-9)
    theirs = guider("MagnitudeAwareGuidance", guidance_scale=10.0, alpha=3.0)
    assert (theirs.forward(*noises).pred - (x + 0.4 * theirs.forward(c, u).pred)).abs().max() > 0.1


def test_momentum_of_what_stays_the_same_changes_nothing() -> None:
    c, u = alike(22)
    rule, state = gs.CFG(4) | gs.Momentum(0.5), None
    for _ in range(3):
        seen, state, _ = updated(rule, c, u, state=state)
        same(seen, updated(gs.CFG(4), c, u)[0])


def test_momentum_keeps_nothing_of_the_networks_own_memory() -> None:
    """A compiled network may write its next answer where this one is."""
    c, u = alike(23)
    _, state, _ = updated(gs.Momentum(0.5), c, u)
    first = state[0].clone()
    c.add_(1)
    assert torch.equal(state[0], first)


# --- Skimmed CFG, thresholds --------------------------------------------------------------------------------------


def test_every_element_of_skimmed_cfg_has_one_of_four_scales() -> None:
    c, u = alike(24)
    seen = updated(gs.Skimmed(6, skim=2), c, u, X0, NOISY)[0]
    shares = ((seen - c) / (c - u)).flatten()
    allowed = torch.tensor([5.0, 1.0, 5 * 2 / 6, 1 * 2 / 6], dtype=torch.float64)  # s' - 1, and that with d k/s
    away = (shares[:, None] - allowed).abs().min(1).values
    assert away.max() < 1e-6
    assert {int(one) for one in (shares[:, None] - allowed).abs().argmin(1)} == {0, 1, 2, 3}
    same(updated(gs.Skimmed(6, skim=6), c, u, X0, NOISY)[0], updated(gs.CFG(6), c, u, X0, NOISY)[0])


def test_a_threshold_leaves_pixels_in_range_alone_and_brings_others_there() -> None:
    c, u = alike(25)
    small = c / c.abs().max()
    assert torch.equal(updated(gs.CFG(0) | gs.Threshold(1), c, small, X0, NOISY)[0], small)
    seen, _, traces = updated(gs.CFG(6) | gs.Threshold(0.9), c, u, X0, NOISY)
    assert seen.abs().max() <= 1
    plain = updated(gs.CFG(6), c, u, X0, NOISY)[0]
    same(1 / traces["threshold"], torch.stack([one.abs().flatten().quantile(0.9) for one in plain]))
    same(updated(gs.CFG(6) | gs.Threshold(0.9, ceiling=1), c, u, X0, NOISY)[0], plain.clamp(-1, 1))


@pytest.mark.parametrize(("size", "share"), [(4096, 0.995), (4096, 0.9), (4095, 0.995), (64, 0.5), (8, 0.999)])
def test_a_quantile_is_torchs_however_it_is_looked_for(size: int, share: float) -> None:
    value = torch.randn(2, 3, size, generator=torch.Generator().manual_seed(size)).mul_(8).round_().div_(8).abs_()
    wanted = torch.quantile(value, share, dim=2, keepdim=True)
    assert torch.allclose(_quantile(value, share, 2).reshape_as(wanted), wanted, atol=1e-6)
    spread = value + torch.rand(value.shape, generator=torch.Generator().manual_seed(1))
    wanted = torch.quantile(spread, share, dim=2, keepdim=True)
    assert torch.allclose(_quantile(spread, share, 2).reshape_as(wanted), wanted, atol=1e-6)


def test_a_mimicked_scale_is_that_scales_range() -> None:
    c, u = alike(26)
    same(updated(gs.CFG(6) | gs.Threshold(1, mimic=6), c, u, X0, NOISY)[0], updated(gs.CFG(6), c, u, X0, NOISY)[0])
    seen = updated(gs.CFG(12) | gs.Threshold(1, mimic=3), c, u, X0, NOISY)[0]
    like = updated(gs.CFG(3), c, u, X0, NOISY)[0]

    def reach(value: Tensor) -> Tensor:
        return (value - value.mean((2, 3), keepdim=True)).abs().amax((2, 3))

    same(reach(seen), reach(like))
    tokens = updated(gs.CFG(12) | gs.Threshold(1, mimic=3), *alike(27, (2, 16, 4)), X0, NOISY)[0]
    assert tokens.shape == (2, 16, 4)


def test_pixels_thresholds_are_refused_on_latents(pipe: Any) -> None:
    with pytest.raises(RuleError, match=r"this model's samples are latents; .*threshold\(mimic=7\)") as caught:
        gs.guide(pipe, "cfg(4) | threshold()")("a cat", num_inference_steps=2)
    assert "\n" not in str(caught.value)
    gs.guide(pipe, "cfg(4) | threshold(mimic=2)")("a cat", num_inference_steps=2)


# --- ADG, FBG, ramps ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.5, 6.0, 1e6, -3.0])
def test_adg_hardly_grows_whatever_the_scale(scale: float) -> None:
    c, u = alike(28)
    seen, _, traces = updated(gs.ADG(scale), c, u, X0, NOISY)
    assert (seen.flatten(1).norm(dim=1) <= 2**0.5 * c.flatten(1).norm(dim=1) * (1 + 1e-12)).all()
    assert (traces["adg_angle"].abs() <= 60 + 1e-9).all()


def test_adg_of_one_direction_has_nowhere_to_turn() -> None:
    c = normal(29)
    for u in (c, 3 * c):
        same(updated(gs.ADG(4), c, u, X0, NOISY)[0], c, 1e-6)
    assert torch.equal(updated(gs.ADG(4), c, 0 * c, X0, NOISY)[0].isfinite(), torch.ones_like(c, dtype=torch.bool))


def test_feedback_of_equal_predictions_grows_by_the_offset_alone_to_the_largest() -> None:
    c, rule, state, scales = normal(30), gs.FBG(0.9, temperature=1, offset=-0.5, largest=5), None, []
    for index, sigma in enumerate((8.0, 4.0, 2.0, 1.0, 0.5, 0.25)):
        seen, state, traces = updated(rule, c, c, X0, Level.ve(sigma), index, state)
        assert torch.equal(seen, c)
        scales.append(float(traces["fbg_scale"][0]))
    expected = []
    for index in range(6):
        p = max(torch.tensor(-0.5 * index).double().exp().item(), 0.1 * 5 / 4)
        expected.append(p / (p - 0.1))
    assert scales == pytest.approx(expected)
    assert scales[0] == pytest.approx(1 / 0.9)
    assert scales[-1] == pytest.approx(5)


def test_a_steps_second_evaluation_has_the_scale_of_its_first() -> None:
    c, u = alike(35)
    rule = gs.FBG(0.9, temperature=1, offset=-0.5)
    run = Run(SHAPE, torch.float64, steps=STEPS)
    state, scales = rule.init(run), []
    for index, evaluation, sigma in ((0, 0, 4.0), (0, 1, 2.0), (1, 0, 2.0), (1, 1, 1.0)):
        level = Level.ve(sigma)
        read = {POSITIVE: Prediction(c, normal(99), level, X0), NEGATIVE: Prediction(u, normal(99), level, X0)}
        predictions = Predictions(read, {query: query for query in read}, read[POSITIVE])
        step = Step(run, index, level, evaluation)
        estimate, after = rule.update(Estimate(read[POSITIVE]), predictions, step, state)
        scales.append(estimate.traces["fbg_scale"])
        assert (after is state) == (evaluation == 1)
        state = after
    assert torch.equal(scales[0], scales[1])
    assert torch.equal(scales[2], scales[3])
    assert not torch.equal(scales[1], scales[2])


def test_feedback_follows_the_path_of_each_sample() -> None:
    """Where a step leads to what the prompt predicts the scale falls, where it leads to the contrast's it grows."""
    c, u = alike(31)
    rule, noisy = gs.FBG(0.9, temperature=1, offset=-0.2), normal(99)
    _, state, _ = updated(rule, c, u, X0, Level.ve(2.0), 0, x=noisy)
    led = 0.25 * noisy + 0.75 * torch.where(torch.tensor([True, False, True]).reshape(-1, 1, 1, 1), c, u)
    _, _, traces = updated(rule, c, u, X0, Level.ve(1.0), 1, state, led)
    scales = traces["fbg_scale"]
    assert scales[0] < 1 / 0.9 < scales[1]
    assert scales[2] < 1 / 0.9


@pytest.mark.parametrize("shape", ["linear", "cosine", "linear-down", "cosine-down"])
@pytest.mark.parametrize("steps", [1, 2, 7, 25])
def test_a_ramp_keeps_the_mean_of_the_scale_and_a_floor_raises_it(shape: str, steps: int) -> None:
    scales = [gs.Ramp(gs.CFG(7), shape).at(index, steps).scale for index in range(steps)]
    assert sum(scales) / steps == pytest.approx(7)
    assert scales == sorted(scales, reverse=shape.endswith("down"))
    clamped = [gs.Ramp(gs.CFG(7), shape, floor=0.5).at(index, steps).scale for index in range(steps)]
    assert clamped == [max(one, 4.0) for one in scales]
    assert {gs.Ramp(gs.CFG(7), shape, floor=2).at(index, steps).scale for index in range(steps)} == {13.0}


def test_a_ramp_changes_what_turns_a_rule_off_and_leaves_the_rest() -> None:
    first = gs.Ramp(gs.FDG(3, 5) | gs.APG(3, eta=0.4) | gs.Rescale(0.7), floor=0.5).at(0, 10)
    assert first == gs.FDG(2, 3) | gs.APG(2, eta=0.4) | gs.Rescale(0.7)
    inside = gs.Ramp(gs.AdaptiveGuidance(gs.CFG(3)), floor=0.5).at(0, 10)
    assert inside == gs.AdaptiveGuidance(gs.CFG(2))
    with pytest.raises(gs.CompositionError, match=r"ramp changes a scale over the steps, and renorm\(\) has none"):
        gs.Ramp(gs.Renorm())
    with pytest.raises(RuleError, match="scale must be between"):
        gs.Ramp(gs.CFG(9e5))


# --- all of them --------------------------------------------------------------------------------------------------

NEUTRAL = (
    gs.CFGZero(1),
    gs.TCFG(1),
    gs.FDG(1, 1),
    gs.FreSca(1),
    gs.MamboG(1),
    gs.SMCCFG(1, gain=0),
    gs.Momentum(0),
    gs.EpsilonScaling(1),
    gs.Skimmed(1),
    gs.ADG(1),
    gs.FBG(1, temperature=1, offset=-1),
    gs.Ramp(gs.CFG(1)),
)


@pytest.mark.parametrize("rule", NEUTRAL, ids=str)
def test_a_rule_that_is_off_gives_the_base_to_the_bit_and_asks_for_nothing(rule: gs.Rule) -> None:
    c, u = alike(32)
    assert rule.asks() == frozenset()
    assert torch.equal(updated(rule, c, u)[0], c)


@pytest.mark.parametrize("rule", [gs.FDG(0, 0), gs.FreSca(0), gs.SMCCFG(0, gain=0)], ids=str)
def test_at_scale_0_a_rule_that_is_cfg_gives_the_contrast_to_the_bit(rule: gs.Rule) -> None:
    c, u = alike(33)
    assert torch.equal(updated(rule, c, u)[0], u)
