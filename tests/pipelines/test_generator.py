"""The generator of images: one batch of a model, whatever it is made for."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

from guidestack.guidance.errors import InputError, RuleError, UnsupportedPipelineError
from guidestack.pipelines.families.lookup import family_of
from guidestack.pipelines.models.generator import Asked, Generator, Made
from guidestack.pipelines.size import own_size

from ..spoiling import Spoil

ASKED = [Asked("a cat", 3), Asked("red", 4), Asked("sea", 5)]


@pytest.fixture(scope="module")
def generator(model_folder: Path) -> Generator:
    return Generator(str(model_folder), "float32", "cpu")


def bits(made: Made) -> dict[int, bytes]:
    return {place: np.asarray(image).tobytes() for place, image in made.images.items()}


@pytest.mark.parametrize("stack", ["cfg(3)", "apg(5)", "cfgpp(0.6)", "perpneg(3)"])
def test_a_batch_that_is_filled_up_has_the_bits_of_a_whole_one(generator: Generator, stack: str) -> None:
    asked = [dataclasses.replace(one, negative="dog") for one in ASKED]
    whole = generator.make(asked, stack, "ddim", 2)
    for count in (1, 2):
        part = generator.make(asked[:count], stack, "ddim", 2, fill=3)
        assert bits(part) == {place: image for place, image in bits(whole).items() if place < count}
        assert part.report.batch == 3
        assert part.report.evaluations[:count] == whole.report.evaluations[:count]


@pytest.mark.parametrize(("seed", "fill"), [(4, 0), (4, 5), (3, 5)])
def test_what_is_lost_is_named_and_the_others_are_there(generator: Generator, seed: int, fill: int) -> None:
    made = generator.make(ASKED, Spoil(seed), "ddim", 2, fill=fill)
    assert set(made.images) == {0, 1, 2} - {seed - 3}
    assert made.lost is not None
    assert seed - 3 in made.lost.samples
    assert generator.make(ASKED, Spoil(9), "ddim", 2).lost is None


def test_it_takes_what_the_pipeline_takes(tmp_path: Path, dit: Any, unconditional: Any) -> None:
    dit.save_pretrained(tmp_path / "dit")
    unconditional.save_pretrained(tmp_path / "plain")
    for name in ("dit", "plain"):
        with pytest.raises(UnsupportedPipelineError, match="takes no prompts"):
            Generator(str(tmp_path / name), "float32", "cpu")
    classes = Generator(str(tmp_path / "dit"), "float32", "cpu", needs_prompts=False)
    made = classes.make([Asked("", 0, label=3), Asked("", 0, label=7)], "cfg(2)", "ddim", 2)
    assert bits(made)[0] != bits(made)[1]
    with pytest.raises(InputError, match="makes one size only"):
        classes.check_size((32, 32))
    plain = Generator(str(tmp_path / "plain"), "float32", "cpu", needs_prompts=False)
    assert set(plain.make([Asked("", 0), Asked("", 1)], "stack()", "ddim", 2).images) == {0, 1}
    assert plain.cut_off(["a " * 1000]) == {}


def test_what_it_cannot_run_is_refused_before(generator: Generator) -> None:
    for stack, sampler, error, message in (
        ("cfg(2)", "flow-euler", InputError, "is for a network that emits"),
        ("icg(3, source='class')", "ddim", UnsupportedPipelineError, "no random condition"),
        ("linear_ag(cfg(4), 'emoji-cfg4-20')", "dpm++2m", RuleError, "was fitted for"),
    ):
        with pytest.raises(error, match=message):
            generator.check(stack, sampler, 20)
    assert len(generator.check("cfg(2)", "ddim", 7).points) == 7
    with pytest.raises(InputError, match="multiples of 8 pixels; got 17x16"):
        generator.check_size((17, 16))
    own = own_size(generator.pipe, family_of(generator.pipe))
    image = generator.make(ASKED[:1], "stack()", "ddim", 1).images[0]
    assert own == (image.height, image.width)


def test_a_pipeline_of_pixels_makes_images_of_the_size_of_its_network() -> None:
    unet = UNet2DModel(
        sample_size=8, block_out_channels=(8,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
        layers_per_block=1, norm_num_groups=4,
    )  # fmt: skip
    pipe = DDPMPipeline(unet, DDPMScheduler())
    assert own_size(pipe, family_of(pipe)) == pipe(num_inference_steps=1, output_type="np").images.shape[1:3]
