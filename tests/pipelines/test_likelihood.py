"""likelihood() through pipelines: the density of the plain function with the same network, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, EulerDiscreteScheduler
from torch import Tensor

import guidestack as gs
from guidestack.guidance.errors import CompositionError, InputError, NonFiniteError, UnsupportedPipelineError
from guidestack.guidance.prediction import Level
from guidestack.samplers import likelihood as plain
from guidestack.samplers.likelihood import clock

from .tiny import load

HOW = {"probes": 2, "tolerance": 0.1}


def test_it_is_that_of_the_plain_function(pipe: Any) -> None:
    """Under guidance, for two pictures with prompts of their own, under a scheduler that holds x / alpha."""
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    x0, prompts = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(9)), ["a cat", "red"]
    finding = gs.likelihood(pipe, "cfg(1.5)")
    assert repr(finding) == "likelihood(StableDiffusionPipeline, 'cfg(1.5)')"
    ours = finding(prompts, image=x0, seeds=[3, 4], **HOW)
    words = {"positive": prompts, "null": [""] * 2}
    text = {name: pipe.encode_prompt(said, "cpu", 1, False)[0] for name, said in words.items()}

    def model(x: Tensor, level: Level, condition: Tensor) -> Tensor:
        return pipe.unet(x, torch.tensor(clock(pipe.scheduler)(level)), condition).sample  # type: ignore[no-any-return]

    theirs = plain(model, "cfg(1.5)", pipe.scheduler, x0, conditions=text, seeds=[3, 4], **HOW)  # type: ignore[arg-type]
    torch.testing.assert_close(ours.nats, theirs.nats, rtol=1e-3, atol=1e-3)
    assert ours.evaluations == theirs.evaluations
    alone = finding("red", image=x0[1:], seeds=[4], **HOW)
    torch.testing.assert_close(alone.nats, ours.nats[1:], rtol=1e-5, atol=1e-3)


def test_a_flow_of_packed_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    builder = load("StableDiffusion3Pipeline")
    pipe = builder.make()
    given = builder.arguments(1)
    for own in ("generator", "output_type", "latents", "num_inference_steps", builder.SCALE):
        given.pop(own, None)
    told: list[float] = []
    forward = pipe.transformer.forward

    def noting(*args: Any, **kwargs: Any) -> Any:
        told.append(float(kwargs["timestep"].flatten()[0]))
        return forward(*args, **kwargs)

    monkeypatch.setattr(pipe.transformer, "forward", noting)
    shape = (1, pipe.transformer.config.in_channels, *[pipe.transformer.config.sample_size] * 2)
    found = gs.likelihood(pipe, "stack()")(image=torch.randn(shape), **given, **HOW)
    assert bool(found.nats.isfinite().all())
    assert min(told) == pytest.approx(1, abs=0.1)  # from sigma = 1/1000 on
    assert max(told) == pytest.approx(1000, abs=1)


def test_what_is_refused(pipe: Any) -> None:
    finding = gs.likelihood(pipe, "stack()")
    for given, words in (
        ({"image": torch.zeros(1, 4, 8, 8), "latents": 1}, "latents was given to a likelihood"),
        ({"image": torch.zeros(1, 3, 17, 16)}, "multiples of 8 pixels; got 17x16"),
        ({"image": torch.zeros(2, 4, 8, 8), "seeds": [1]}, "seeds has 1 entries for 2 pictures"),
        ({}, "image= takes"),
    ):
        with pytest.raises(InputError, match=words):
            finding("a cat", **given)
    with pytest.raises(CompositionError, match="two predictions"):
        gs.likelihood(pipe, "cfgpp(0.4)")
    with pytest.raises(UnsupportedPipelineError, match="takes an image itself"):
        gs.likelihood(load("StableDiffusionImg2ImgPipeline").make(), "cfg(2)")
    with pytest.raises(NonFiniteError, match="picture 0: NaN or Inf"):
        finding("a cat", image=torch.full((1, 4, 8, 8), torch.nan), **HOW)
    assert pipe("a cat", num_inference_steps=1, output_type="latent").images.isfinite().all()  # and left as it was
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)  # which has no room for moves
    with pytest.raises(CompositionError, match=r"langevin\(\) .* moves samples .* flow does not allow"):
        gs.likelihood(pipe, "cfg(3) | langevin(1)")
