"""Steps that a stack answers without the network, inside pipelines: counted as run, exact, refused where impossible."""

from __future__ import annotations

import importlib
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

import guidestack as gs
from guidestack.evaluation.effective_scale import gathered, strength
from guidestack.guidance.errors import InputError, UnsupportedPipelineError
from guidestack.pipelines import guide

STEPS = 5
SKIPPING = "schedule(cfg(4), 'g s r s c')"


def rows_run(pipe: Any, monkeypatch: pytest.MonkeyPatch, name: str = "unet") -> list[int]:
    """Rows of each call of the denoiser, as the denoiser itself sees them."""
    seen: list[int] = []
    denoiser = getattr(pipe, name)
    original = denoiser.forward

    def forward(sample: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(len(sample))
        return original(sample, *args, **kwargs)

    forward.remembers = False  # type: ignore[attr-defined]
    monkeypatch.setattr(denoiser, "forward", forward)
    return seen


def images(pipe: Any, stack: Any, samples: int = 2, **options: Any) -> tuple[np.ndarray[Any, Any], Any]:
    guided = guide(pipe, stack, **options)
    seeds = [torch.Generator().manual_seed(sample) for sample in range(samples)]
    made = guided(["a cat"] * samples, num_inference_steps=STEPS, generator=seeds, output_type="np").images
    return made, guided.report


def test_a_skipped_step_runs_no_network(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = rows_run(pipe, monkeypatch)
    _, report = images(pipe, SKIPPING)
    assert seen == [4, 2, 2]
    assert [record.rows for record in report.steps] == [4, 0, 2, 0, 2]
    assert report.evaluations == [4, 4]
    assert report.calls == len(seen)


@pytest.mark.parametrize("max_rows", [1, 3])
def test_rows_are_bounded_as_anywhere(pipe: Any, monkeypatch: pytest.MonkeyPatch, max_rows: int) -> None:
    wanted, _ = images(pipe, SKIPPING, 3)
    seen = rows_run(pipe, monkeypatch)
    found, report = images(pipe, SKIPPING, 3, max_rows=max_rows)
    assert max(seen) <= max_rows
    assert sum(seen) == report.rows == 12
    assert np.allclose(found, wanted, atol=1e-5)


def test_a_held_estimate_is_a_longer_step_of_ddim(pipe: Any) -> None:
    """Every second of eight steps is the four steps in whose levels they are, up to the schedulers' float32."""
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(steps_offset=1, clip_sample=False, timestep_spacing="trailing")
    seeds = [torch.Generator().manual_seed(3)]

    def run(stack: str, steps: int) -> Any:
        pipe.scheduler = DDIMScheduler.from_config(scheduler.config)
        seeds[0].manual_seed(3)
        return guide(pipe, stack)("a cat", num_inference_steps=steps, generator=seeds, output_type="latent").images

    few, many = run("cfg(4)", 4), run("schedule(cfg(4), '(gs)*', skip_order=0, space='noise')", 8)
    assert torch.allclose(few, many, atol=2e-4)
    assert not torch.allclose(few, run("cfg(4)", 8), atol=2e-3)


@pytest.mark.parametrize(
    "scheduler", ["HeunDiscreteScheduler", "EulerAncestralDiscreteScheduler", "UniPCMultistepScheduler"]
)
def test_any_scheduler_goes_on(pipe: Any, scheduler: str) -> None:
    pipe.scheduler = getattr(diffusers, scheduler).from_config(pipe.scheduler.config)
    found, report = images(pipe, SKIPPING)
    assert np.isfinite(found).all()
    per_step = dict.fromkeys(range(STEPS), 0)
    for record in report.steps:
        per_step[record.index] += record.rows
    assert per_step[1] == per_step[3] == 0
    assert per_step[0] > 0


def test_learned_variances_stay_those_of_the_last_answer(dit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = rows_run(dit, monkeypatch, "transformer")
    guided = guide(dit, "schedule(cfg(4), 'g s g s g')")
    made = guided(class_labels=[3, 4], num_inference_steps=STEPS, generator=torch.Generator().manual_seed(0))
    assert seen == [4, 4, 4]
    assert guided.report is not None
    assert guided.report.evaluations == [6, 6]
    assert len(made.images) == 2


def test_re_noising_goes_on_too(pipe: Any) -> None:
    """With every estimate held from the first, CFG++ steps once in the end, whatever lies between."""
    found, report = images(pipe, "schedule(cfgpp(0.6), 'g s g s c')")
    assert report.evaluations == [5, 5]
    assert np.isfinite(found).all()
    same, _ = images(pipe, "schedule(cfgpp(0.6), 'g*')")
    wanted, _ = images(pipe, "cfgpp(0.6)")
    assert np.array_equal(same, wanted)
    assert not np.array_equal(found, wanted)


def test_what_is_traced_of_a_skipped_step_is_nothing(pipe: Any) -> None:
    guided = guide(pipe, SKIPPING, observe=strength)
    guided(["a cat"] * 2, num_inference_steps=STEPS, generator=torch.Generator().manual_seed(0), output_type="np")
    assert guided.report is not None
    traces = gathered(guided.report)
    assert traces.values["evaluations"].tolist() == [[2, 0, 1, 0, 1]] * 2
    scale = traces.values["effective_scale"]
    assert scale[:, 0] == pytest.approx(4, abs=1e-4)
    assert scale[:, 4] == pytest.approx(1)
    assert np.isnan(scale[:, 1]).all()
    assert np.isnan(scale[:, 3]).all()
    assert traces.values["rule.reused"].tolist() == [[0, 1, 1, 1, 0]] * 2


def test_a_pipeline_that_calls_for_each_condition_is_refused() -> None:
    """And runs a plan without s."""
    tiny = importlib.import_module("guidestack.tests.pipelines.tiny").load("WanPipeline")
    pipe = tiny.make()
    with pytest.raises(UnsupportedPipelineError, match="WanPipeline calls it for each condition by itself"):
        guide(pipe, "schedule(cfg(4), 'g s*')")
    guided = guide(pipe, "schedule(cfg(4), 'g r*')")
    guided(**tiny.arguments(1, True))
    assert guided.report is not None
    assert {record.rows for record in guided.report.steps[1:]} == {1}


def test_a_guider_says_so() -> None:
    with pytest.raises(InputError, match="leaves the network out at some steps, and the loop calls it at each"):
        gs.StackGuider("schedule(cfg(4), 'g s*')")
    gs.StackGuider("schedule(cfg(4), 'g r*')")
