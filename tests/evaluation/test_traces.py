"""The effective scale: what the module says, computed in a straight line beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

import guidestack as gs
from guidestack.evaluation.effective_scale import Traces, gathered, lever, mean, strength
from guidestack.guidance.prediction import EPSILON, FLOW, X0, Level, Parameterization, V, convert
from guidestack.guidance.rule import Rule
from guidestack.guidance.rules.linear_ag import fit as linear
from guidestack.guidance.step import Estimate
from guidestack.guidance.testing.checks import IDENTITY, LEVELS, Oracle, OracleRun, oracle_run
from guidestack.pipelines import guide

STEPS = len(LEVELS)
CLOSE = 1e-6


def observed(rule: Rule | str, oracle: Oracle | None = None) -> tuple[Traces, OracleRun]:
    """A run on the mixture, observed; its levels after each step are those of the oracle's own DDIM."""
    oracle = oracle or Oracle()
    run = oracle.begin(gs.parse(rule) if isinstance(rule, str) else rule)
    run.observe = strength
    original = run.estimate

    def estimate(network: Any, x: Any, index: int, level: Level, evaluation: int, time: Any, *more: Any) -> Estimate:
        after = oracle.levels[min(index + 1, len(oracle.levels) - 1)]
        return original(network, x, index, level, evaluation, time, after)

    run.estimate = estimate  # type: ignore[method-assign]
    done = oracle_run(run.stack, oracle, run)
    return gathered(run.report), done


def by_hand(oracle: Oracle, done: OracleRun, index: int, contrast: str) -> tuple[torch.Tensor, torch.Tensor]:
    """g and d of one step in clean samples, from the mixture itself: shape ``(B, elements)``."""
    x, level, conditions = done.inputs[index], oracle.levels[index], oracle.conditions()
    c = oracle.mixture.denoised(x, level, conditions["positive"]).flatten(1)
    u = oracle.mixture.denoised(x, level, conditions[contrast]).flatten(1)
    return done.denoised[index].flatten(1) - c, c - u


@pytest.mark.parametrize("emits", [EPSILON, X0, V, FLOW])
@pytest.mark.parametrize("scale", [4.0, 0.0, -2.5])
def test_of_cfg_it_is_the_scale_at_every_step(emits: Parameterization, scale: float) -> None:
    traces, _ = observed(gs.CFG(scale), Oracle(parameterization=emits))
    assert traces.values["effective_scale"].shape == (3, STEPS)
    np.testing.assert_allclose(traces.values["effective_scale"], scale, rtol=0, atol=CLOSE)
    np.testing.assert_allclose(traces.values["across"], 0, rtol=0, atol=CLOSE)
    np.testing.assert_allclose(traces.effective_scale, scale, rtol=0, atol=CLOSE)
    np.testing.assert_allclose(traces.ga_scale, abs(scale), rtol=0, atol=CLOSE)  # which is a length
    assert traces.guided_steps.tolist() == [STEPS] * 3
    assert "jump_scale" not in traces.values


@pytest.mark.parametrize(
    ("text", "scale"),
    [
        ("apg(5, eta=1)", 5),
        ("cfg(3) | cfg(2)", 4),
        ("cfg(3, against='null@weak')", 3),
        ("perpneg(3.5, weights=(1, 0.5))", 3.5),
        ("tsg(2.5, strength=0.3)", 2.5),
        ("tsg(2.5, strength=0.3, power=1)", 2.5),
        ("prefix(apg(5, eta=1), 99)", 5),
    ],
)
def test_rules_whose_scale_is_constant(text: str, scale: float) -> None:
    traces, _ = observed(text)
    np.testing.assert_allclose(traces.values["effective_scale"], scale, rtol=0, atol=1e-5)


def test_a_random_condition_that_is_the_prompt_has_no_direction() -> None:
    traces, _ = observed("icg(3)")
    scales = traces.values["effective_scale"]
    none = traces.values["contrast_norm"] == 0
    assert 0 < none.sum() < none.size / 2  # of four classes the prompt's is drawn now and then
    np.testing.assert_allclose(scales[~none], 3, rtol=0, atol=1e-5)
    assert np.isnan(scales[none]).all()
    np.testing.assert_allclose(traces.effective_scale, 3, rtol=0, atol=1e-5)


def test_perpneg_lies_across_and_keeps_its_scale() -> None:
    oracle = Oracle()
    traces, done = observed("perpneg(3.5, weights=(1, 0.5))")
    for index in range(STEPS):
        g, d = by_hand(oracle, done, index, "null")
        rest = g - 2.5 * d
        np.testing.assert_allclose(traces.values["across"][:, index], rest.norm(dim=1) / d.norm(dim=1), CLOSE, CLOSE)
    assert traces.across.max() > 0.01
    both = np.hypot(traces.values["effective_scale"], traces.values["across"])
    np.testing.assert_allclose(traces.values["ga_scale"], both, rtol=1e-4)


@pytest.mark.parametrize(
    "text",
    ["apg(5, eta=0.2, radius=2, momentum=-0.5)", "cfg(4) | rescale(0.7)", "cfg(4) | renorm(axes=(1, 2, 3))", "apg(6)"],
)
def test_against_a_straight_line(text: str) -> None:
    for emits in (X0, V):
        oracle = Oracle(parameterization=emits)
        traces, done = observed(text, oracle)
        for index in range(STEPS):
            g, d = by_hand(oracle, done, index, "negative")
            along = (g * d).sum(1) / (d * d).sum(1)
            across = (g - along[:, None] * d).norm(dim=1) / d.norm(dim=1)
            np.testing.assert_allclose(traces.values["effective_scale"][:, index], 1 + along, rtol=1e-5, atol=CLOSE)
            np.testing.assert_allclose(traces.values["across"][:, index], across, rtol=1e-5, atol=CLOSE)
            np.testing.assert_allclose(traces.values["update_norm"][:, index], g.norm(dim=1), 1e-5, CLOSE)
            np.testing.assert_allclose(traces.values["contrast_norm"][:, index], d.norm(dim=1), rtol=1e-5)
        assert traces.across.min() > 1e-3
        assert np.ptp(traces.values["effective_scale"]) > 1e-3


def test_adaptive_is_below_the_nominal_in_proportion_to_what_it_skips() -> None:
    scale = 4.0
    traces, done = observed(gs.AdaptiveGuidance(gs.CFG(scale), threshold=0.9, space="denoised", crossing="guided"))
    guided = traces.guided_steps
    assert len(set(guided.tolist())) > 1
    assert 0 < guided.min() < STEPS
    np.testing.assert_allclose(traces.effective_scale, 1 + (scale - 1) * guided / STEPS, atol=1e-5)
    assert (guided + STEPS).tolist() == done.run.report.evaluations
    np.testing.assert_array_equal(traces.values["evaluations"] - 1, traces.values["guided"])
    # where it evaluates and does not apply
    crossing, _ = observed(gs.AdaptiveGuidance(gs.CFG(scale), threshold=0.9))
    assert (crossing.values["evaluations"].sum(1) - STEPS > crossing.guided_steps).any()
    np.testing.assert_allclose(crossing.effective_scale, 1 + (scale - 1) * crossing.guided_steps / STEPS, atol=1e-5)
    np.testing.assert_array_equal(np.isnan(crossing.values["cosine"]), crossing.values["evaluations"] < 2)
    np.testing.assert_allclose(crossing.values["cosine"], crossing.values["rule.cosine"], rtol=1e-6)  # and NaN alike


@pytest.mark.parametrize("text", ["stack()", "cfg(1)", "apg(1)", "perpneg(1, weights=0, positive_weights=0)"])
def test_no_guidance_is_scale_1(text: str) -> None:
    traces, _ = observed(text)
    assert (traces.values["effective_scale"] == 1).all()
    assert (traces.values["across"] == 0).all()
    assert traces.guided_steps.tolist() == [0] * 3
    assert np.isnan(traces.values["cosine"]).all()


def test_windows() -> None:
    traces, _ = observed("during(cfg(3), progress=(0.2, 0.6)) | rescale(0.5)")
    inside = np.array([0.2 <= index / STEPS < 0.6 for index in range(STEPS)])
    assert (traces.values["effective_scale"][:, ~inside] == 1).all()
    assert (traces.values["effective_scale"][:, inside] != 1).all()
    assert traces.guided_steps.tolist() == [inside.sum()] * 3
    # each sample by the rule that leads it there
    two, _ = observed("during(cfg(3), progress=(0.2, 0.6)) | during(cfg(2, against='null'), progress=(0.4, 1))")
    index = next(i for i in range(STEPS) if i / STEPS >= 0.6)
    np.testing.assert_allclose(two.values["effective_scale"][:, index:], 2, atol=CLOSE)
    np.testing.assert_allclose(two.values["across"][:, index:], 0, atol=CLOSE)
    both = next(i for i in range(STEPS) if i / STEPS >= 0.4)
    assert (two.values["across"][:, both] > 1e-3).all()


def test_each_sample_has_the_direction_of_the_first_rule_that_leads_it() -> None:
    first = gs.AdaptiveGuidance(gs.CFG(4), threshold=0.9, space="denoised", crossing="guided")
    stops, _ = observed(first)
    both, _ = observed(first | gs.CFG(2, against="null@weak"))
    stopped = both.values["rule.guiding.1"] == 0
    assert (stopped.any(0) & ~stopped.all(0)).any()  # at some step some have stopped
    np.testing.assert_allclose(both.values["effective_scale"][stopped], 2, atol=1e-5)
    np.testing.assert_allclose(both.values["across"][stopped], 0, atol=1e-5)
    assert (both.values["across"][~stopped] > 1e-6).all()
    assert (stops.values["effective_scale"][stops.values["rule.guiding"] == 0] == 1).all()


@pytest.fixture
def _fit(tmp_path, monkeypatch) -> None:  # noqa: ANN001
    triangle = torch.triu(torch.arange(1.0, 4 * STEPS**2 + 1, dtype=torch.float64).reshape(2 * STEPS, -1).sin())
    fit = linear.Fit("cfg(4)", STEPS, dict(IDENTITY), triangle + 2 * torch.eye(2 * STEPS, dtype=torch.float64))
    monkeypatch.chdir(tmp_path)
    linear.write(fit, tmp_path / "oracle.safetensors", [True] * STEPS)


@pytest.mark.usefixtures("_fit")
def test_linear_ag_is_measured_along_its_estimate() -> None:
    letters = "gege" + "c" * (STEPS - 4)
    traces, done = observed(gs.LinearAG(gs.CFG(4), "oracle.safetensors", policy=letters))
    nominal = np.array([1.0 if letter == "c" else 4.0 for letter in letters])
    np.testing.assert_allclose(traces.values["effective_scale"], np.tile(nominal, (3, 1)), atol=1e-5)
    np.testing.assert_allclose(traces.values["across"], 0, atol=1e-5)
    assert traces.values["evaluations"][0, :4].tolist() == [2, 1, 2, 1]
    assert traces.guided_steps.tolist() == [4] * 3
    g, _ = by_hand(Oracle(), done, 1, "negative")  # of the real contrast it is no multiple
    np.testing.assert_allclose(traces.values["update_norm"][:, 1], g.norm(dim=1), rtol=1e-5)


@pytest.mark.parametrize("rule", [gs.CFGPlusPlus(0.6), gs.CFG(0.3) | gs.Renoise("negative"), gs.CFGPlusPlus(0)])
def test_cfgpp_is_the_scale_of_cfg_that_takes_the_same_step(rule: Rule) -> None:
    traces, done = observed(rule)
    own = next(part.scale for part in rule.parts() if hasattr(part, "scale"))
    np.testing.assert_allclose(traces.values["jump_scale"], own, atol=CLOSE)
    oracle = Oracle()
    for index in range(STEPS - 1):
        level, after = oracle.levels[index], oracle.levels[index + 1]
        scale = traces.values["effective_scale"][:, index]
        np.testing.assert_allclose(scale, gs.CFGPlusPlus(own).cfg_scale(level.k_sigma, after.k_sigma), CLOSE, CLOSE)
        same = oracle.step(oracle.begin(gs.CFG(float(scale[0]))), done.inputs[index], index)[1]
        torch.testing.assert_close(same, done.inputs[index + 1], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(traces.values["across"][:, :-1], 0, atol=CLOSE)
    assert np.isnan(traces.values["effective_scale"][:, -1]).all()  # the oracle's last step leads nowhere
    assert not np.isnan(traces.effective_scale).any()


def test_the_lever_at_the_ends() -> None:
    assert lever(Level.vp(0.0), Level.vp(0.01)) == 1
    assert lever(Level.ve(0.03), Level.ve(0.0)) == 1
    assert lever(Level.ve(3.0), Level.ve(2.0)) == 3
    assert np.isnan(lever(Level.ve(3.0), Level.ve(3.0)))


@dataclass(frozen=True)
class Pushed(Rule):
    """Adds to the estimate, and guides away from nothing."""

    def __str__(self) -> str:
        return "pushed"

    def update(self, estimate: Estimate, predictions: Any, step: Any, state: Any) -> tuple[Estimate, Any]:
        return estimate.replace("native", estimate.read("native") + 0.1), state


def test_without_a_direction_nothing_is_said() -> None:
    traces, _ = observed(Pushed())
    assert np.isnan(traces.values["effective_scale"]).all()
    assert np.isnan(traces.effective_scale).all()
    assert traces.guided_steps.tolist() == [STEPS] * 3
    along, _ = observed(gs.CFG(3) | Pushed())  # with one it is split as any update
    assert (along.values["across"] > 0).all()
    silent, _ = observed(gs.CFG(3, against="positive"))
    assert np.isnan(silent.values["effective_scale"]).all()
    assert (silent.values["guided"] == 0).all()


def test_half_precision() -> None:
    oracle = Oracle(dtype=torch.bfloat16)
    traces, _ = observed(gs.CFG(4), oracle)
    np.testing.assert_allclose(traces.values["effective_scale"], 4, rtol=0.1)
    for dtype in (torch.bfloat16, torch.float32):  # what rescale rounds is no guidance
        still, _ = observed("during(cfg(3), progress=(0, 0.2)) | rescale(0.7)", Oracle(dtype=dtype))
        assert (still.values["effective_scale"][:, -1] == 1).all()
        assert still.guided_steps.tolist() == [2] * 3
    prompt = oracle_run(gs.Stack(), Oracle(dtype=torch.float32)).outputs[0]
    assert not torch.equal(gs.Rescale(0.7).phi * prompt + (1 - 0.7) * prompt, prompt)


def test_through_a_pipeline_it_changes_and_asks_nothing(pipe) -> None:  # noqa: ANN001
    def run(stack: Any, observe: Any) -> tuple[torch.Tensor, Any]:
        guided = guide(pipe, stack, observe=observe)
        generators = [torch.Generator().manual_seed(seed) for seed in range(3)]
        images = guided(["a cat", "red", "sea"], num_inference_steps=4, generator=generators, output_type="latent")
        return images.images, guided.report

    for text in ("cfg(4)", "adaptive(cfg(4), threshold=0.97)", "apg(4, momentum=-0.5)", "cfgpp(0.6)"):
        with_it, report = run(text, strength)
        without, plain = run(text, None)
        assert torch.equal(with_it, without)
        assert (report.evaluations, report.calls, report.rows) == (plain.evaluations, plain.calls, plain.rows)
        assert all(not record.observed for record in plain.steps)
        traces = gathered(report)
        assert traces.values["effective_scale"].shape == (3, 4)
        if text == "cfg(4)":
            np.testing.assert_allclose(traces.values["effective_scale"], 4, atol=1e-3)
            np.testing.assert_allclose(traces.values["across"], 0, atol=1e-2)


def test_cfgpp_through_a_sampler_whose_last_level_is_not_clean(pipe) -> None:  # noqa: ANN001
    from diffusers import DDIMScheduler

    pipe.scheduler = DDIMScheduler(steps_offset=1, clip_sample=False, set_alpha_to_one=False)

    def latents(stack: Any, steps: int, start: Any) -> tuple[torch.Tensor, Traces]:
        guided = guide(pipe, stack, observe=strength)
        images = guided("a cat", num_inference_steps=steps, latents=start, output_type="latent").images
        return images, gathered(guided.report)

    start = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    plus, traces = latents("cfgpp(0.6)", 1, start)
    scale = float(traces.effective_scale[0])
    final = float(pipe.scheduler.final_alpha_cumprod)
    begin = float(pipe.scheduler.alphas_cumprod[1])
    k, after = ((1 - begin) / begin) ** 0.5, ((1 - final) / final) ** 0.5
    assert scale == pytest.approx(0.6 * k / (k - after), rel=1e-4)
    assert scale > 1  # at a last step to a clean sample it would be 0.6
    plain, _ = latents(gs.CFG(scale), 1, start)
    torch.testing.assert_close(plain, plus, rtol=1e-4, atol=1e-4)


def test_two_evaluations_of_a_step_count_as_one_step() -> None:
    from diffusers import HeunDiscreteScheduler

    mixture = Oracle().mixture

    def model(x: torch.Tensor, level: Level, conditions: torch.Tensor) -> torch.Tensor:
        clean = mixture.denoised(x.double(), level, conditions)
        return convert(clean, x.double(), level, X0, EPSILON).to(x.dtype)

    conditions = {"positive": torch.stack([mixture.condition(0)] * 2), "null": torch.stack([mixture.condition()] * 2)}
    done = gs.sample(
        model,
        "cfg(3)",
        HeunDiscreteScheduler(),
        conditions=conditions,
        shape=(2, 3, 3),
        seeds=(1, 2),
        steps=4,
        observe=strength,
    )
    assert len(done.report.steps) == 7
    traces = gathered(done.report)
    assert traces.values["effective_scale"].shape == (2, 4)
    np.testing.assert_allclose(traces.values["effective_scale"], 3, atol=1e-4)
    assert traces.values["evaluations"].tolist() == [[4, 4, 4, 2]] * 2
    assert {name: values.shape for name, values in traces.sample(1).items()}["across"] == (4,)


def test_means_leave_out_what_is_not_there() -> None:
    rows = np.array([[1.0, np.nan, 3.0], [np.nan] * 3])
    np.testing.assert_array_equal(mean(rows), [2.0, np.nan])


def test_a_report_that_nobody_observed_is_no_run_to_gather() -> None:
    done = oracle_run(gs.CFG(2))
    with pytest.raises(ValueError, match="observe=strength"):
        gathered(done.run.report)
