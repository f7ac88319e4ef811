"""A sample that is not finite: all others of its batch come out, as if it were not there, and one error says so."""

from __future__ import annotations

import itertools
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import guidestack as gs
from guidestack.guidance.errors import NonFiniteError
from guidestack.samplers import invert as invert_samples

from ..spoiling import Spoil
from .tiny import load

BATCH, LOST = 3, 1
FAMILIES = (
    "StableDiffusionXLPipeline",
    "StableDiffusionXLControlNetImg2ImgPipeline",
    "StableDiffusion3Pipeline",
    "FluxPipeline",
    "Lumina2Pipeline",
    "HiDreamImagePipeline",
    "HunyuanDiTPipeline",
    "WanPipeline",
    "CogVideoXPipeline, multistep",
    "Kandinsky3Pipeline",
    "AudioLDM2Pipeline",
)


def seeded() -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(BATCH)]


def first(output: Any) -> Any:
    return output[0]


def assert_kept(error: NonFiniteError, wanted: Any, lost: tuple[int, ...] = (LOST,), rtol: float = 0.0) -> None:
    """All samples but the lost are those of a run in which nothing is spoilt; to the bit, unless told."""
    assert error.samples == lost
    found = first(error.output)
    assert len(found) == len(wanted) == BATCH
    for sample in set(range(BATCH)) - set(lost):
        one, other = np.asarray(found[sample]), np.asarray(wanted[sample])
        np.testing.assert_allclose(one, other, rtol=0, atol=rtol * float(abs(other).max()))
        assert np.isfinite(np.asarray(found[sample])).all()


@pytest.mark.parametrize("name", FAMILIES)
def test_the_others_come_out(name: str) -> None:
    builder = load(name)
    pipe, given = builder.make(), {"negative": True, "generator": seeded()}
    wanted = first(gs.guide(pipe, "cfg(3)")(**builder.arguments(BATCH, **given)))
    given["generator"] = seeded()
    guided = gs.guide(pipe, gs.CFG(3) | Spoil(LOST, start=1))
    with pytest.raises(
        NonFiniteError, match=r"NaN or Inf at step .* in the guided estimate .*; lost: samples \[1\]"
    ) as caught:
        guided(**builder.arguments(BATCH, **given))
    assert "\n" not in str(caught.value)
    assert_kept(caught.value, wanted)
    assert guided.report.evaluations  # the account of all of it
    given["generator"] = seeded()
    again = first(gs.guide(pipe, "cfg(3)")(**builder.arguments(BATCH, **given)))
    assert all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(again, wanted, strict=True))


@pytest.mark.parametrize(
    "scheduler", ["PNDMScheduler", "DPMSolverMultistepScheduler", "HeunDiscreteScheduler", "UniPCMultistepScheduler"]
)
@pytest.mark.parametrize(
    "stack",
    [
        "apg(4, radius=2, momentum=-0.5)",
        "adaptive(cfg(3), threshold=0.9999)",
        "perpneg(3) | rescale(0.7)",
        "cfgpp(0.6)",
        "schedule(cfg(3), 'g2 (rs)2 g*')",
        "tsg(3) | renorm()",
    ],
)
def test_under_rules_that_remember_and_measure(pipe: Any, scheduler: str, stack: str) -> None:
    import diffusers

    pipe.scheduler = getattr(diffusers, scheduler).from_config(pipe.scheduler.config)
    given = {"num_inference_steps": 6, "output_type": "latent"}
    prompts = ["a cat", "red", "sea"]
    wanted = gs.guide(pipe, stack)(prompts, generator=seeded(), **given).images
    read = gs.parse(stack)
    inside = read.rules[0]
    spoilt = (
        gs.Schedule(inside.rule | Spoil(LOST, start=1), inside.plan)
        if isinstance(inside, gs.Schedule)
        else read | Spoil(LOST, start=1)
    )
    with pytest.raises(NonFiniteError) as caught:
        gs.guide(pipe, spoilt)(prompts, generator=seeded(), **given)
    # A lost sample never stops, and other rows in a call are other roundings.
    assert_kept(caught.value, wanted, rtol=1e-5 if "adaptive" in stack else 0.0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("kind", ["pil", "np", "pt", "latent"])
def test_in_every_kind_of_output_and_without_another_word(pipe: Any, kind: str, value: float) -> None:
    given = {"num_inference_steps": 3, "output_type": kind}
    wanted = gs.guide(pipe, "cfg(3)")(["a", "b", "c"], generator=seeded(), **given).images
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # numpy's, of a picture of NaN, would be a second and a riddle
        with pytest.raises(NonFiniteError) as caught:
            gs.guide(pipe, gs.CFG(3) | Spoil(LOST, value=value))(["a", "b", "c"], generator=seeded(), **given)
    assert_kept(caught.value, wanted)


def test_an_answer_of_the_network_is_named_with_who_asked(pipe: Any) -> None:
    given = {"num_inference_steps": 4, "output_type": "latent"}
    wanted = gs.guide(pipe, "cfg(3)")(["a", "b", "c"], generator=seeded(), **given).images
    calls = itertools.count()

    def spoil(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        output = output.clone()
        if next(calls) == 2:
            output[3 + 1] = torch.nan  # the rows of the prompt come behind those of the empty one
        return output

    hook = pipe.unet.conv_out.register_forward_hook(spoil)
    try:
        where = (
            r"step 2 of 4 .*answer to 'positive', asked by cfg\(3\); .*lost: samples \[1\]; the other samples of 3 are"
        )
        with pytest.raises(NonFiniteError, match=where) as caught:
            gs.guide(pipe, "cfg(3)")(["a", "b", "c"], generator=seeded(), **given)
    finally:
        hook.remove()
    assert_kept(caught.value, wanted, (1,))


def test_what_the_sampler_handed_over_is_not_said_to_be_the_networks(pipe: Any) -> None:
    given = {"num_inference_steps": 4, "output_type": "latent"}
    wanted = gs.guide(pipe, "cfg(3)")(["a", "b", "c"], generator=seeded(), **given).images

    def spoil(pipe: Any, i: int, t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        latents = tensors["latents"].clone()
        if i == 1:
            latents[1] = torch.nan
        if i == 2:
            latents[0] = torch.inf
        return {"latents": latents}

    guided = gs.guide(pipe, "cfg(3)")
    where = r"step 2 of 4 .*in what the sampler handed over, .*lost: samples \[0, 1\]; the other samples of 3 are"
    with pytest.raises(NonFiniteError, match=where) as caught:
        guided(["a", "b", "c"], callback_on_step_end=spoil, generator=seeded(), **given)
    assert_kept(caught.value, wanted, (0, 1))


def test_a_run_that_has_lost_all_of_its_samples_ends_at_once(pipe: Any) -> None:
    steps: list[int] = []

    def count(pipe: Any, i: int, t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        steps.append(i)
        return {}

    guided = gs.guide(pipe, gs.CFG(3) | Spoil(0, start=2) | Spoil(1, start=3) | Spoil(2, start=2))
    with pytest.raises(NonFiniteError, match=r"step 2 of 6 .*lost: samples \[0, 1, 2\]$") as caught:
        guided(["a", "b", "c"], callback_on_step_end=count, generator=seeded(), num_inference_steps=6)
    assert caught.value.output is None
    assert caught.value.samples == (0, 1, 2)
    assert steps == [0, 1, 2]
    assert len(guided.report.steps) == 4


def test_num_images_per_prompt_counts_images(pipe: Any) -> None:
    given = {"num_inference_steps": 3, "output_type": "latent", "num_images_per_prompt": 3}
    wanted = gs.guide(pipe, "cfg(3)")("a", generator=seeded(), **given).images
    with pytest.raises(NonFiniteError) as caught:
        gs.guide(pipe, gs.CFG(3) | Spoil(2))("a", generator=seeded(), **given)
    assert_kept(caught.value, wanted, (2,))


def pictures() -> Tensor:
    return torch.rand(BATCH, 3, 16, 16, generator=torch.Generator().manual_seed(2))


def test_inversion_and_editing(pipe: Any) -> None:
    call: dict[str, Any] = {"image": pictures(), "num_inference_steps": 4}
    wanted = gs.invert(pipe, "cfg(2)")(prompt=["a", "b", "c"], generator=seeded(), **call).latents
    inverting = gs.invert(pipe, gs.CFG(2) | Spoil(LOST, start=0))
    with pytest.raises(NonFiniteError) as caught:
        inverting(prompt=["a", "b", "c"], generator=seeded(), **call)
    assert_kept_latents(caught.value, wanted)

    edited = {"source": ["a", "b", "c"], "prompt": ["d", "e", "f"], "output_type": "latent", **call}
    wanted = gs.edit(pipe, "cfg(2)")(generator=seeded(), **edited).images
    for stack, inversion in ((gs.CFG(2) | Spoil(LOST), "cfg(2)"), ("cfg(2)", gs.CFG(2) | Spoil(LOST))):
        with pytest.raises(NonFiniteError, match="guided estimate") as caught:
            gs.edit(pipe, stack, inversion=inversion)(generator=seeded(), **edited)
        assert_kept(caught.value, wanted)
    both = gs.edit(pipe, gs.CFG(2) | Spoil(0), inversion=gs.CFG(2) | Spoil(LOST))
    with pytest.raises(NonFiniteError) as caught:
        both(generator=seeded(), **edited)
    assert_kept(caught.value, wanted, (0, LOST))


def assert_kept_latents(error: NonFiniteError, wanted: Tensor) -> None:
    assert error.samples == (LOST,)
    for sample in (0, 2):
        assert torch.equal(error.output.latents[sample], wanted[sample])


def test_sampling_without_a_pipeline() -> None:
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

    def model(x: Tensor, level: Any, told: Tensor) -> Tensor:
        return 0.5 * x + told.reshape(-1, 1, 1)

    conditions = {"positive": torch.ones(BATCH), "null": torch.zeros(BATCH)}
    for scheduler in (DDIMScheduler(clip_sample=False), DPMSolverMultistepScheduler()):
        given: dict[str, Any] = {"conditions": conditions, "shape": (2, 3), "seeds": range(BATCH), "steps": 5}
        wanted = gs.sample(model, "cfg(3)", scheduler, **given)
        with pytest.raises(NonFiniteError, match=r"samples \[1\]") as caught:
            gs.sample(model, gs.CFG(3) | Spoil(LOST, start=2), scheduler, **given)
        assert caught.value.samples == (LOST,)
        assert torch.equal(caught.value.output.x[[0, 2]], wanted.x[[0, 2]])
        assert caught.value.output.report.evaluations == wanted.report.evaluations
    back: dict[str, Any] = {"conditions": conditions, "steps": 5}
    wanted = invert_samples(model, "cfg(2)", DDIMScheduler(clip_sample=False), given_start(), **back)
    with pytest.raises(NonFiniteError) as caught:
        invert_samples(model, gs.CFG(2) | Spoil(LOST), DDIMScheduler(clip_sample=False), given_start(), **back)
    assert torch.equal(caught.value.output.x[[0, 2]], wanted.x[[0, 2]])


def given_start() -> Tensor:
    return torch.randn(BATCH, 2, 3, generator=torch.Generator().manual_seed(1))
