"""Images that are drawn from particles: which one, of what seeds, and what is counted."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

import guidestack as gs
from guidestack.guidance.errors import InputError, UnsupportedSchedulerError
from guidestack.guidance.prediction import Level
from guidestack.guidance.query import POSITIVE
from guidestack.guidance.report import Report, StepRecord
from guidestack.pipelines.models.generator import Asked, Generator
from guidestack.pipelines.models.particles import drawn, images_together, of_images, seeds_of

STACK = "resample(3, 4, clamp=1)"


def told(weights: list[float]) -> Report:
    traces = {"log_weight": torch.tensor(weights), "ess": torch.arange(len(weights)).float()}
    asked = {POSITIVE: tuple(range(len(weights)))}
    return Report("", len(weights), [StepRecord(0, 0, Level.ve(1.0), asked, 1, len(weights), traces)])


def test_an_image_is_drawn_by_the_weights_of_its_group() -> None:
    seeds = range(3000)
    chosen = drawn(told([math.log(0.2), math.log(0.5), math.log(0.3)] * 3000), seeds)
    assert [one // 3 for one in chosen] == list(seeds)
    shares = np.bincount([one % 3 for one in chosen], minlength=3) / 3000
    assert shares == pytest.approx([0.2, 0.5, 0.3], abs=0.03)
    assert drawn(told([-50, 0, -50, 0, -50, -50]), [7, 8]) == [1, 3]
    assert drawn(told([0.0] * 6), [7, 8])[1:] == [3 + one for one in drawn(told([0.0] * 3), [8])]


def test_seeds_of_particles_are_of_the_image_alone() -> None:
    assert seeds_of(5, 1) == [5]
    assert seeds_of(5, 4)[0] == 5
    assert len({*seeds_of(5, 4), *seeds_of(6, 4)}) == 8
    assert seeds_of(5, 3) == seeds_of(5, 4)[:3]


def test_an_image_counts_what_its_particles_cost() -> None:
    report = of_images(told([0, 1, 2, 3, 4, 5]), [2, 3])
    assert report.evaluations == [3, 3]
    assert report.rows == 6
    assert report.trace("ess") == [[2, 3]]


def test_particles_fill_batches() -> None:
    assert [images_together(gs.parse(STACK), batch) for batch in (1, 3, 8, 9)] == [1, 1, 2, 3]
    assert images_together(gs.parse("cfg(3)"), 8) == 8
    assert images_together(gs.parse("resample(8, 1)"), 8) == 8  # off


@pytest.fixture(scope="module")
def generator(model_folder: Any) -> Generator:
    return Generator(str(model_folder), "float32", "cpu")


def test_an_image_is_one_of_the_particles_that_guide_makes(generator: Generator) -> None:
    from diffusers import DDPMScheduler

    made = generator.make([Asked("a cat", 4), Asked("red", 9)], STACK, "ddpm", 4)
    assert made.report.evaluations == [3 * 4 * 2] * 2
    assert sorted(made.images) == [0, 1]
    pipe = generator.pipe
    assert isinstance(pipe.scheduler, DDPMScheduler)
    for place, (prompt, seed) in enumerate((("a cat", 4), ("red", 9))):
        generators = [torch.Generator().manual_seed(one) for one in seeds_of(seed, 3)]
        guided = gs.guide(pipe, STACK)
        images = guided(prompt, num_images_per_prompt=3, num_inference_steps=4, generator=generators).images
        assert guided.report is not None
        (chosen,) = drawn(guided.report, [seed])
        away = np.abs(np.asarray(images[chosen]).astype(int) - np.asarray(made.images[place]).astype(int))
        assert away.max() <= 1


def test_an_image_is_the_same_in_every_batch(generator: Generator) -> None:
    asked = [Asked("a cat", 4), Asked("red", 9), Asked("a cat", 5)]
    together = generator.make(asked, STACK, "ddpm", 3).images
    for place, one in enumerate(asked):
        alone = generator.make([one], STACK, "ddpm", 3, fill=3).images[0]
        assert np.array_equal(np.asarray(alone), np.asarray(together[place]))


def test_a_lost_particle_loses_the_image_of_its_group(generator: Generator) -> None:
    def spoil(module: Any, given: Any, out: Any) -> None:
        out[0][1] = torch.nan  # of the first image's second particle

    hook = generator.pipe.unet.register_forward_hook(spoil)
    try:
        made = generator.make([Asked("a cat", 4), Asked("red", 9)], STACK, "ddpm", 3)
    finally:
        hook.remove()
    assert sorted(made.images) == [1]
    assert made.lost is not None


def test_a_reward_weighs_the_pictures_of_other_rules_and_a_drift_leads_to_it(generator: Generator) -> None:
    last = []
    for drift in (0, 100):
        stack = f"cfg(3) | resample(3, 1, reward='blue', strength=4, drift={drift})"
        generator.check(stack, "ddpm", 3)
        report = generator.make([Asked("a cat", 4), Asked("red", 9)], stack, "ddpm", 3).report
        assert report.evaluations == [3 * 3 * 2] * 2
        found = report.trace("log_f")
        assert len(found) == 3
        last.append(sum(found[-1]))
    assert last[1] > last[0] + 1


def test_what_particles_cannot_run_on_is_a_line(generator: Generator) -> None:
    with pytest.raises(UnsupportedSchedulerError, match=r"without fresh noise; use DDPMScheduler .--sampler ddpm"):
        generator.check(STACK, "ddim", 4)
    with pytest.raises(InputError, match=r"needs to know which samples have one prompt; drop --weights"):
        generator.check(STACK, "ddpm", 4, weights=True)
    generator.check(STACK, "ddpm", 4)
