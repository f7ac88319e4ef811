"""invert() and edit() through pipelines: exact where the network is, nothing left behind, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache
from typing import Any

import diffusers
import pytest
import torch
from PIL import Image
from torch import Tensor

import guidestack as gs
from guidestack.guidance.errors import (
    CompositionError,
    GuidanceNotAppliedError,
    InputError,
    UnsupportedPipelineError,
    UnsupportedSchedulerError,
)
from guidestack.guidance.prediction import Level
from guidestack.pipelines.families.record import FAMILIES
from guidestack.pipelines.latents import latents_of, pixels
from guidestack.samplers import grid
from guidestack.samplers import invert as invert_samples
from guidestack.samplers.inversion import FIRST_ORDER

from .stock import denoising, trajectory
from .tiny import load
from .tiny.text import NEGATIVES, PROMPTS

STEPS = 8
SHAPE = (4, 8, 8)


def latents(batch: int = 2) -> Tensor:
    return torch.randn(batch, *SHAPE, generator=torch.Generator().manual_seed(9))


def frozen(pipe: Any, timestep: float = 500.0) -> AbstractContextManager[None]:
    """While it lasts, the denoisers answer as for samples that are 0, at one time: what they say hangs on prompts."""
    family = FAMILIES[type(pipe).__name__]

    def answer(original: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        more = arguments.pop("kwargs", {})
        told = arguments[family.timestep]
        sample = arguments[family.sample]
        zeros = [torch.zeros_like(one) for one in sample] if isinstance(sample, list) else torch.zeros_like(sample)
        then = torch.full_like(told, timestep) if isinstance(told, Tensor) else timestep
        return original(**{**arguments, family.sample: zeros, family.timestep: then}, **more)

    return denoising(pipe, answer)


def use(pipe: Any, name: str, **options: Any) -> Any:
    pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config, **options)
    return pipe


def away(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


# --- exact where the network is --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scheduler", "spacing", "steps"),
    [
        ("DDIMScheduler", "leading", STEPS),
        ("DDIMScheduler", "linspace", 20),
        ("DDIMScheduler", "trailing", 7),
        ("EulerDiscreteScheduler", "leading", STEPS),
    ],
)
@pytest.mark.parametrize("stack", ["stack()", "cfg(4)", "cfgpp(0.6)", "during(cfg(4), sigma=(0.5, 3))"])
def test_what_was_inverted_comes_back(pipe: Any, scheduler: str, spacing: str, steps: int, stack: str) -> None:
    use(pipe, scheduler, timestep_spacing=spacing)
    x0, given = latents(), {"prompt": PROMPTS[:2], "negative_prompt": NEGATIVES[:2], "num_inference_steps": steps}
    if stack == "stack()":
        del given["negative_prompt"]
    with frozen(pipe):
        done = gs.invert(pipe, stack)(image=x0, **given)
        back = gs.guide(pipe, stack)(latents=done.latents, output_type="latent", **given).images
        other = gs.guide(pipe, stack)(latents=done.latents, output_type="latent", **{**given, "prompt": PROMPTS[2:4]})
    assert away(back, x0) < 1e-4
    assert away(done.latents, x0) > 0.1
    assert away(other.images, x0) > 0.01  # the tiny network hears its prompts


FAMILY_NAMES = [
    "StableDiffusionXLPipeline",
    "StableDiffusion3Pipeline",
    "FluxPipeline",
    "QwenImagePipeline",
    "AuraFlowPipeline",
    "Lumina2Pipeline",
    "ZImagePipeline",
    "LTXPipeline",
    "MochiPipeline",
    "KolorsPipeline",
]


@cache
def made(name: str) -> Any:
    return load(name).make()


@pytest.mark.filterwarnings("ignore:this network was distilled")
@pytest.mark.parametrize("name", FAMILY_NAMES)
@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_other_families(name: str, strength: float) -> None:
    """Packed and listed samples, networks that are negated, schedules turned round, Euler and flows: as given."""
    pipe, builder = made(name), load(name)
    given = builder.arguments(2, negative=True)
    for own in ("generator", "output_type", "latents", builder.SCALE):
        given.pop(own, None)
    given["num_inference_steps"] = 4
    run: list[Tensor] = []

    def note(pipe: Any, i: int, t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        run.append(tensors["latents"].clone())
        return {}

    prompts = given.pop("prompt")
    with frozen(pipe):
        shape = trajectory(pipe, pipe, builder.arguments(2))[0].shape
        x0 = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        editing = gs.edit(pipe, "cfgpp(0.6)")
        editing(x0, source=prompts, prompt=prompts, strength=strength, callback_on_step_end=note, **given)
    steps = int(4 * strength)
    assert len(run) == steps  # taken; those undone were not shown
    assert away(run[-1], x0) < 1e-5
    assert steps == 2 or away(run[0], x0) > 0.05
    assert len(pipe.scheduler.timesteps) == 4
    assert editing.evaluations == [4 * steps] * 2


@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "EulerDiscreteScheduler"])
def test_a_pipeline_takes_the_plain_loops_way_back(pipe: Any, scheduler: str) -> None:
    use(pipe, scheduler, timestep_spacing="trailing")
    x0 = latents(1)
    seen = gs.invert(pipe, "cfgpp(0.6)")("a cat", image=x0, num_inference_steps=STEPS)
    words = {"positive": "a cat", "null": ""}
    text = {name: pipe.encode_prompt(said, "cpu", 1, False)[0] for name, said in words.items()}

    def model(x: Tensor, level: Level, condition: Tensor) -> Tensor:
        timestep = next(point.timestep for point in grid(pipe.scheduler).points if point.level == level)
        held = math.hypot(level.alpha, level.sigma)  # Euler holds x / alpha, its networks take x
        return pipe.unet(x / held, timestep, condition).sample  # type: ignore[no-any-return]

    wanted = invert_samples(model, "cfgpp(0.6)", pipe.scheduler, x0, conditions=text, steps=STEPS)
    assert away(seen.latents * float(pipe.scheduler.init_noise_sigma), wanted.x) < 1e-4
    assert [record.index for record in seen.report.steps] == [record.index for record in wanted.report.steps]
    assert [record.index for record in seen.report.steps] == list(range(STEPS - 1, -1, -1))
    assert seen.report.evaluations == wanted.report.evaluations == [2 * STEPS]


@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "EulerDiscreteScheduler"])
def test_an_edit_is_an_inversion_and_a_guided_call(pipe: Any, scheduler: str) -> None:
    use(pipe, scheduler)
    x0, given = latents(), dict[str, Any](num_inference_steps=STEPS, negative_prompt="fog")
    editing = gs.edit(pipe, "cfg(3)", inversion="cfg(1.5)")
    seen = editing(x0, source="a cat", prompt="red", output_type="latent", **given).images
    noise = gs.invert(pipe, "cfg(1.5)")(image=x0, prompt=["a cat"] * 2, **given).latents
    given["negative_prompt"] = ["fog"] * 2
    wanted = gs.guide(pipe, "cfg(3)")(["red"] * 2, latents=noise, output_type="latent", **given).images
    assert torch.equal(seen, wanted)
    assert repr(editing) == "edit(StableDiffusionPipeline, 'cfg(3)', inversion='cfg(1.5)')"
    assert editing.evaluations == [4 * STEPS] * 2


@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "EulerDiscreteScheduler"])
def test_strength_undoes_the_last_steps_only(pipe: Any, scheduler: str) -> None:
    use(pipe, scheduler)
    x0 = latents()
    for strength, steps in ((1.0, 8), (0.5, 4), (0.13, 1)):
        editing = gs.edit(pipe, "cfg(3)")
        given = {"source": "a cat", "strength": strength, "num_inference_steps": STEPS, "output_type": "latent"}
        with frozen(pipe):
            back = editing(x0, prompt="a cat", **given).images
        assert away(back, x0) < 1e-4
        for half, order in ((editing.inverting, -1), (editing.sampling, 1)):
            assert [record.index for record in half.report.steps] == list(range(STEPS - steps, STEPS))[::order]
        changed = editing(x0, prompt="red", **given).images
        assert not torch.equal(changed, x0)
    with pytest.raises(InputError, match=r"strength=0\.1 of 8 steps is none; give at least 0\.125"):
        gs.edit(pipe, "cfg(3)")(x0, source="a", prompt="b", strength=0.1, num_inference_steps=STEPS)


def test_half_precision(new_pipe: Any) -> None:
    pipe = new_pipe().to(torch.bfloat16)
    done = gs.invert(pipe, "cfg(2)")("a cat", image=Image.new("RGB", (16, 16), "red"), num_inference_steps=STEPS)
    assert done.latents.dtype == torch.bfloat16
    assert torch.isfinite(done.latents).all()
    with frozen(pipe):
        x0 = latents(1).bfloat16()
        done = gs.invert(pipe, "cfg(2)")("a cat", image=x0, num_inference_steps=STEPS)
        back = gs.guide(pipe, "cfg(2)")(
            "a cat", latents=done.latents, output_type="latent", num_inference_steps=STEPS
        ).images
    assert away(back.float(), x0.float()) < 0.1


# --- pictures --------------------------------------------------------------------------------------------------------


def picture(width: int = 16, height: int = 16) -> Image.Image:
    tones = torch.arange(width * height * 3).reshape(height, width, 3) * 37 % 256
    return Image.fromarray(tones.to(torch.uint8).numpy())


def test_a_picture_becomes_the_mean_of_its_latents(pipe: Any) -> None:
    seen = latents_of(pipe, picture(), torch.float32)
    tensor = pixels(picture(), 2)
    assert tensor.shape == (1, 3, 16, 16)
    assert tensor[0, :, 2, 1].tolist() == pytest.approx([2 * tone / 255 - 1 for tone in picture().getpixel((1, 2))])
    with torch.no_grad():
        wanted = pipe.vae.encode(tensor).latent_dist.mean * pipe.vae.config.scaling_factor
    assert torch.equal(seen, wanted)
    for form in ([picture()], (tensor + 1) / 2, (tensor[0] + 1) / 2):
        assert torch.allclose(latents_of(pipe, form, torch.float32), wanted, atol=1e-5)
    assert len(latents_of(pipe, [picture(), picture()], torch.float32)) == 2
    assert torch.equal(latents_of(pipe, latents(), torch.float32), latents())


def test_what_is_transparent_becomes_white() -> None:
    half = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    half.paste((0, 0, 255, 255), (0, 0, 4, 8))
    seen = pixels(half, 8)[0]
    assert seen[:, 0, 0].tolist() == [-1, -1, 1]
    assert seen[:, 0, 7].tolist() == [1, 1, 1]
    palette = half.convert("P")
    assert pixels(palette, 8).shape == (1, 3, 8, 8)


def test_a_shift_and_float32_where_the_autoencoder_needs_it(new_pipe: Any) -> None:
    pipe = new_pipe()
    plain = latents_of(pipe, picture(), torch.float32) / pipe.vae.config.scaling_factor
    pipe.vae.register_to_config(shift_factor=0.25, force_upcast=True)
    seen = latents_of(pipe, picture(), torch.float32)
    assert torch.allclose(seen, (plain - 0.25) * pipe.vae.config.scaling_factor, atol=1e-6)
    pipe.vae.to(dtype=torch.float16)
    kinds: list[torch.dtype] = []
    pipe.vae.encoder.register_forward_hook(lambda module, given, output: kinds.append(output.dtype))
    assert latents_of(pipe, picture(), torch.float16).dtype == torch.float16
    assert kinds == [torch.float32]
    assert pipe.vae.dtype == torch.float16


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (None, "image= takes PIL images, or a tensor of pictures or of latents; got none"),
        ("cat.png", "got str"),
        ([], "got list"),
        (
            picture(17, 16),
            r"multiples of 8 pixels; got 16x17 \(height x width\)",
        ),
        ([picture(), picture(18, 16)], r"pictures of one call have one size; got 16x16, 16x18 \(height x width\)"),
        (torch.zeros(1, 5, 8, 8), r"shape \(B, 3, H, W\).*got torch.float32 \(1, 5, 8, 8\)"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "got torch.uint8"),
        (torch.zeros(8, 8), r"got torch.float32 \(8, 8\)"),
    ],
)
def test_images_that_are_none(pipe: Any, image: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        gs.invert(pipe, "cfg(2)")("a cat", image=image, num_inference_steps=2)


def test_pictures_of_pipelines_that_keep_latents_otherwise() -> None:
    pipe = made("FluxPipeline")
    with pytest.raises(UnsupportedPipelineError, match=r"FluxPipeline: it packs its latents, .* give the latents"):
        gs.invert(pipe, "stack()")("a cat", image=picture())
    with pytest.raises(UnsupportedPipelineError, match="its autoencoder is AutoencoderKLMochi"):
        gs.invert(made("MochiPipeline"), "stack()")("a cat", image=picture())


# --- left as it was found, and refusals ------------------------------------------------------------------------------


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "EulerDiscreteScheduler"])
def test_the_pipeline_is_left_as_it_was_found(pipe: Any, scheduler: str, fails: bool) -> None:
    use(pipe, scheduler)
    given = {"num_inference_steps": STEPS, "output_type": "latent"}
    stock = pipe("red", guidance_scale=3.0, generator=torch.Generator().manual_seed(1), **given).images
    before, kinds = set(vars(pipe.scheduler)), {name: type(part) for name, part in pipe.components.items()}
    timesteps = pipe.scheduler.timesteps.clone()
    x0 = latents()
    kept = x0.clone()

    def fail(pipe: Any, i: int, t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if fails and i == 2:
            raise RuntimeError("on purpose")
        return {}

    for call in (
        lambda: gs.invert(pipe, "cfg(3)")("red", image=x0[:1], num_inference_steps=STEPS, callback_on_step_end=fail),
        lambda: gs.edit(pipe, "cfg(3)")(
            x0, source="a", prompt="b", strength=0.6, num_inference_steps=STEPS, callback_on_step_end=fail
        ),
    ):
        if fails:
            with pytest.raises(RuntimeError, match="on purpose"):
                call()
        else:
            call()
        assert torch.equal(pipe.scheduler.timesteps, timesteps)
        assert set(vars(pipe.scheduler)) == before
        assert {name: type(part) for name, part in pipe.components.items()} == kinds
    assert torch.equal(x0, kept)
    again = pipe("red", guidance_scale=3.0, generator=torch.Generator().manual_seed(1), **given).images
    assert torch.equal(stock, again)


def test_schedulers_pipelines_and_rules_that_cannot(pipe: Any) -> None:
    for name in ("DPMSolverMultistepScheduler", "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler"):
        use(pipe, name)
        for make in (gs.invert, gs.edit):
            with pytest.raises(UnsupportedSchedulerError, match=f"{name} cannot be inverted: .*{FIRST_ORDER[1]}"):
                make(pipe, "cfg(2)")
    use(pipe, "DDIMScheduler", clip_sample=True)
    with pytest.raises(UnsupportedSchedulerError, match="clip_sample=True cannot be inverted"):
        gs.invert(pipe, "cfg(2)")
    use(pipe, "DDIMScheduler", clip_sample=False)
    with pytest.raises(CompositionError, match=r"adaptive\(.*remembers earlier steps"):
        gs.edit(pipe, "adaptive(cfg(3), threshold=0.99)")
    gs.edit(pipe, "adaptive(cfg(3), threshold=0.99)", inversion="cfg(3)")
    with pytest.raises(UnsupportedPipelineError, match="StableDiffusionControlNetPipeline takes an image itself"):
        gs.invert(made("StableDiffusionControlNetPipeline"), "cfg(2)")
    unet = diffusers.UNet2DModel(
        sample_size=8, block_out_channels=(8,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
        norm_num_groups=4, layers_per_block=1,
    )  # fmt: skip
    with pytest.raises(UnsupportedPipelineError, match="DDIMPipeline takes no latents"):
        gs.invert(diffusers.DDIMPipeline(unet, diffusers.DDIMScheduler(clip_sample=False)), "tsg(2)")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"latents": latents()}, "latents was given to an inversion; leave it out"),
        ({"output_type": "pil"}, "output_type was given to an inversion"),
        ({"eta": 1.0}, r"eta=1\.0 draws fresh noise"),
        ({"num_images_per_prompt": 2}, "num_images_per_prompt=2: one image has one inversion"),
        ({"prompt": ["a", "b", "c"]}, "3 prompts for 2 images"),
        ({"height": 24}, "height=24 was given and the image's is 16"),
        ({"strength": 0}, r"strength is the share of the steps to undo, in \(0, 1\]; got 0"),
        ({"strength": 1.5}, "got 1.5"),
        ({"promt": "a"}, "no 'promt'; did you mean 'prompt'"),
    ],
)
def test_arguments_that_an_inversion_decides(pipe: Any, given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        gs.invert(pipe, "cfg(2)")(**{"prompt": "a cat", "image": latents(), "num_inference_steps": 2, **given})


def test_an_inversion_that_stops_on_the_way_is_an_error(pipe: Any) -> None:
    def stop(pipe: Any, i: int, t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        pipe._interrupt = i == 2
        return {}

    with pytest.raises(GuidanceNotAppliedError, match="stopped after 3 steps of an inversion; was it interrupted"):
        gs.invert(pipe, "cfg(2)")("a cat", image=latents(1), num_inference_steps=STEPS, callback_on_step_end=stop)
    pipe._interrupt = False


def test_eta_zero_and_one_image_a_prompt_are_nothing_new(pipe: Any) -> None:
    plain = gs.invert(pipe, "cfg(2)")("a cat", image=latents(1), num_inference_steps=2).latents
    said = gs.invert(pipe, "cfg(2)")("a cat", image=latents(1), num_inference_steps=2, eta=0.0, num_images_per_prompt=1)
    assert torch.equal(said.latents, plain)
