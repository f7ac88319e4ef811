"""Lists of levels: published ones, one's own, in a sampler's name and through every door."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from click.testing import CliRunner
from diffusers.schedulers import AysSchedules
from PIL import Image

import guidestack as gs
from guidestack.evaluation.spec.sweep import load_sweep
from guidestack.guidance.errors import InputError
from guidestack.samplers import by_name, canonical, grid, scheduler_with_steps
from guidestack.samplers.lists import KINDS, LISTS, takes
from guidestack.samplers.names import SAMPLERS
from guidestack.scripts.cli import group

STABLE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
OWN = [14.0, 5.0, 1.5, 0.2]


@pytest.mark.parametrize(("name", "theirs"), [("ays", "StableDiffusion"), ("ays-xl", "StableDiffusionXL")])
def test_align_your_steps_are_the_lists_of_diffusers(name: str, theirs: str) -> None:
    assert scheduler_with_steps(f"euler@{name}", STABLE, 10).sigmas.tolist() == pytest.approx(
        AysSchedules[f"{theirs}Sigmas"]
    )
    steps = scheduler_with_steps(f"dpm++2m@{name}", STABLE, 10).timesteps.tolist()
    assert max(abs(one - other) for one, other in zip(steps, AysSchedules[f"{theirs}Timesteps"], strict=True)) <= 1


@pytest.mark.parametrize("name", LISTS)
def test_a_published_list_goes_between_the_steps_of_any_run(name: str) -> None:
    whole = scheduler_with_steps(f"euler@{name}", STABLE, 10).sigmas.log()[:-1]
    twice = scheduler_with_steps(f"euler@{name}", STABLE, 20).sigmas.log()[:-1]
    torch.testing.assert_close(twice[::2], whole)
    torch.testing.assert_close(twice[1:-1:2], (whole[1:] + whole[:-1]) / 2)
    for steps in (1, 3, 40):
        found = scheduler_with_steps(f"heun@{name}", STABLE, steps)
        assert grid(found).steps == steps
        assert all(one >= other for one, other in itertools.pairwise(found.timesteps.tolist()))


def test_no_training_step_stands_twice() -> None:
    """Where many steps lie between two of them: a solver would divide by their distance."""
    for count in (100, 300, 1000):
        steps = scheduler_with_steps("dpm++2m@gits", STABLE, count).timesteps.tolist()
        assert all(one > other for one, other in itertools.pairwise(steps))
        assert steps[-1] >= 0
    with pytest.raises(InputError, match="1001 steps are more than the 1000 of the training"):
        scheduler_with_steps("dpm++2m@gits", STABLE, 1001)


@pytest.mark.parametrize("sampler", [name for name, (cls, _) in SAMPLERS.items() if takes(getattr(diffusers, cls))])
@pytest.mark.filterwarnings("ignore:.*custom timestep:UserWarning")
def test_every_scheduler_that_takes_a_list_is_where_it_says(sampler: str) -> None:
    kinds = takes(getattr(diffusers, SAMPLERS[sampler][0]))
    flow = sampler.startswith("flow")
    if sampler == "unipc":  # whose sigmas are for flow models
        with pytest.raises(InputError, match="takes no sigmas"):
            by_name(f"{sampler}@sigmas=3,1")
        return
    for kind in KINDS:
        values = [0.9, 0.5, 0.2] if flow and kind == "sigmas" else OWN if kind == "sigmas" else [900, 500, 60]
        text = f"{sampler}@{kind}={','.join(map(str, values))}"
        if kind == "timesteps" and kind not in kinds:
            with pytest.raises(InputError, match="takes no timesteps"):
                by_name(text)
            continue
        scheduler = scheduler_with_steps(text, None if flow else STABLE, len(values))
        points = [point for point in grid(scheduler).points if point.evaluation == 0 or sampler == "dpm++2s"]
        if kind == "timesteps" and not flow:
            assert [point.timestep for point in points] == values
        elif kind == "sigmas" and not flow:
            tolerance = 1e-5 if "sigmas" in kinds else 0.01  # of the nearest training step
            assert [point.level.k_sigma for point in points] == pytest.approx(values, rel=tolerance)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("euler@ayz", "ays, ays-xl, gits, sigmas=... or timesteps=...; got 'ayz'; did you mean 'ays'?"),
        ("euler@", "behind a sampler's @ stands"),
        ("euler@sigmas=1,2", "each smaller than the one before"),
        ("euler@sigmas=", "numbers above 0"),
        ("euler@sigmas=nan", "numbers above 0"),
        ("euler@sigmas=3,-1", "numbers above 0"),
        ("euler@sigmas=inf,1", "numbers above 0"),
        ("dpm++2m@timesteps=10.5", "whole numbers from 0"),
        ("ddim@ays", "DDIMScheduler takes no sigmas"),
        ("flow-euler@ays", "begins at 14.615, and the levels of FlowMatchEulerDiscreteScheduler at 1"),
        ("edm-euler@sigmas=80,1", "takes no sigmas"),
        ("euler-karras@ays", "'euler-karras' makes its own levels"),
    ],
)
def test_what_cannot_be_used_is_one_line(name: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        by_name(name)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_list_of_ones_own_is_for_as_many_steps() -> None:
    with pytest.raises(InputError, match=r"4 sigmas are for as many steps, and this run has 25; give steps 4"):
        scheduler_with_steps(f"euler@sigmas={','.join(map(str, OWN))}", STABLE, 25)
    assert canonical("Euler@sigmas=14, 5,1.50,0.2,0") == "euler@sigmas=14,5,1.5,0.2"
    assert canonical("DPM++ 2M@AYS XL") == "dpm++2m@ays-xl"


def model(x: torch.Tensor, level: Any, conditions: torch.Tensor) -> torch.Tensor:
    return x * (0.5 + 0.1 * conditions.reshape(-1, 1, 1, 1))


def sampled(**levels: Any) -> torch.Tensor:
    conditions = {"positive": torch.ones(2), "null": torch.zeros(2)}
    scheduler = diffusers.EulerDiscreteScheduler(**STABLE)
    return gs.sample(model, "cfg(3)", scheduler, conditions=conditions, shape=(1, 4, 4), seeds=(0, 1), **levels).x


def test_sample_takes_sigmas_and_timesteps() -> None:
    with_end = sampled(sigmas=[*OWN, 0])
    assert torch.equal(sampled(sigmas=OWN), with_end)
    same = sampled(timesteps=[900, 500, 100])
    scheduler = diffusers.EulerDiscreteScheduler(**STABLE)
    scheduler.set_timesteps(timesteps=[900, 500, 100])
    torch.testing.assert_close(sampled(sigmas=scheduler.sigmas.tolist()), same, rtol=1e-5, atol=1e-5)
    for wrong in ({"sigmas": OWN, "timesteps": [9, 5]}, {"sigmas": []}, {"timesteps": [0.5]}, {"sigmas": [1, 2]}):
        with pytest.raises(InputError):
            sampled(**wrong)


@pytest.mark.parametrize(
    ("scheduler", "given"),
    [
        ("EulerDiscreteScheduler", {"sigmas": [*OWN, 0.0]}),
        ("EulerDiscreteScheduler", {"timesteps": [900, 500, 100]}),
        ("DPMSolverMultistepScheduler", {"timesteps": [900, 500, 100]}),
        ("HeunDiscreteScheduler", {"timesteps": [900, 500, 100]}),
    ],
)
def test_a_pipelines_own_lists_are_guided_as_the_pipeline_guides(pipe: Any, scheduler: str, given: Any) -> None:
    pipe.scheduler = getattr(diffusers, scheduler)(**STABLE)
    said = {"prompt": "a cat", "negative_prompt": "dog", "output_type": "latent", **given}
    own = pipe(guidance_scale=4.0, generator=torch.Generator().manual_seed(0), **said).images
    guided = gs.guide(pipe, "cfg(4)")
    assert torch.equal(guided(generator=torch.Generator().manual_seed(0), **said).images, own)
    levels = [record.level.k_sigma for record in guided.report.steps if record.evaluation == 0]
    pipe.scheduler.set_timesteps(**given)
    assert levels == [point.level.k_sigma for point in grid(pipe.scheduler).points if point.evaluation == 0]


def test_generate_takes_a_list_and_the_image_is_made_again(tmp_path: Any) -> None:
    def run(*arguments: str) -> Any:
        return CliRunner().invoke(group, ["generate", "cat face", "--out", str(tmp_path), *arguments])

    done = run("--sampler", "euler", "--sigmas", "14.6,3,0.5,0")
    assert done.exit_code == 0, done.output
    (line,) = (tmp_path / "manifest.jsonl").read_text().splitlines()
    recipe = json.loads(line)["recipe"]
    assert recipe["sampler"] == "euler@sigmas=14.6,3,0.5"
    assert recipe["steps"] == 3
    (picture,) = tmp_path.glob("*.png")
    again = CliRunner().invoke(group, ["generate", "--like", str(picture), "--out", str(tmp_path / "again")])
    assert again.exit_code == 0, again.output
    (copy,) = (tmp_path / "again").glob("*.png")
    assert copy.read_bytes() == picture.read_bytes()
    for wrong in (["--sigmas", "3,1", "--timesteps", "9,1"], ["--sampler", "euler@ays", "--sigmas", "ays"]):
        assert isinstance(run(*wrong).exception, InputError)
    assert "give steps 2" in str(run("--sampler", "euler", "--sigmas", "3,1", "--steps", "9").exception)


def test_a_sweep_compares_lists() -> None:
    sweep = load_sweep(
        {
            "prompts": ["cat face"],
            "stack": "cfg(4)",
            "steps": 10,
            "axes": {"sampler": ["dpm++2m", "dpm++2m@AYS", "dpm++2m@gits"]},
            "metrics": ["saturation"],
        }
    )
    assert sweep.axes["sampler"] == ("dpm++2m", "dpm++2m@ays", "dpm++2m@gits")


def test_commands_that_make_the_levels_themselves_refuse_a_list(tmp_path: Any) -> None:
    picture = tmp_path / "a.png"
    Image.new("RGB", (64, 64)).save(picture)
    for command in (
        ["edit", str(picture), "a dog", "--source", "a cat"],
        ["fit-linear-ag", "--out", str(tmp_path / "x.safetensors")],
    ):
        prompts = ["--prompts", str(Path(__file__))] if command[0] == "fit-linear-ag" else []
        done = CliRunner().invoke(group, [*command, *prompts, "--sampler", "euler@ays"])
        assert "takes the sampler's own noise levels" in str(done.exception)
