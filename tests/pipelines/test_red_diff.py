"""RED-diff in a stack through pipelines: an optimizer in the place of the scheduler, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler
from torch import Tensor

import guidestack as gs
from guidestack.guidance.errors import (
    CompositionError,
    InputError,
    RuleError,
    UnsupportedError,
    UnsupportedSchedulerError,
)
from guidestack.guidance.keyed import keyed
from guidestack.guidance.objective import Objective
from guidestack.guidance.query import POSITIVE
from guidestack.guidance.testing import check_move

from ..conftest import make_stable_diffusion, make_unconditional
from .left import state
from .stock import replaced
from .test_families import arguments, made

pytestmark = pytest.mark.filterwarnings("ignore:this network was distilled")

STEPS, SEEDS, WEIGHT, LR, SCALE = 4, (5, 6), 0.7, 0.05, 3.0
FAMILIES = {  # each with the name of its scale, "" where it has none
    "StableDiffusionPipeline": "guidance_scale",
    "StableDiffusionXLPipeline": "guidance_scale",  # under Euler, which scales the input
    "StableDiffusion3Pipeline": "guidance_scale",  # a flow
    "FluxPipeline": "",  # packed samples
    "DDIMPipeline": "",  # pixels
}


@cache
def pipeline(name: str) -> Any:
    if name == "DDIMPipeline":
        return make_unconditional(name)
    pipe = make_stable_diffusion() if name == "StableDiffusionPipeline" else made(name)
    if name == "StableDiffusionPipeline":  # ends with a little noise, as Stable Diffusion's own
        pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, set_alpha_to_one=False)
    if name == "StableDiffusionXLPipeline":
        pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    return pipe


def call(name: str) -> dict[str, Any]:
    seeds = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    if name == "DDIMPipeline":
        return {"batch_size": 2, "generator": seeds, "num_inference_steps": STEPS, "output_type": "np"}
    given = {"prompt": ["a cat", "red"]} if name == "StableDiffusionPipeline" else arguments(name, 2, False)
    return {**given, "generator": seeds, "num_inference_steps": STEPS, "output_type": "latent"}


def darker(seen: Tensor) -> Tensor:
    """Of pictures, or of packed latents."""
    return -(seen - 0.2).square().flatten(1).sum(1) / 2


def objective(name: str) -> Callable[[Tensor], Tensor]:
    def measured(x0: Tensor) -> Tensor:
        return darker(x0)

    if name == "FluxPipeline":
        measured.space = "latents"  # type: ignore[attr-defined]
    return measured


def decoded(name: str, pipe: Any, x0: Tensor) -> Tensor:
    if name == "FluxPipeline":
        return x0
    if name == "DDIMPipeline":
        return x0 / 2 + 0.5
    config = pipe.vae.config
    latents = x0 / config.scaling_factor + (config.shift_factor or 0)
    return pipe.vae.decode(latents).sample / 2 + 0.5  # type: ignore[no-any-return]


def level(scheduler: Any, place: int) -> tuple[float, float]:
    """Alpha and sigma of an entry of the schedule."""
    if type(scheduler).__name__.startswith("Flow"):
        return 1 - float(scheduler.sigmas[place]), float(scheduler.sigmas[place])
    if isinstance(scheduler, EulerDiscreteScheduler):
        return 1.0, float(scheduler.sigmas[place])
    kept = float(scheduler.alphas_cumprod[int(scheduler.timesteps[place])])
    return kept**0.5, (1 - kept) ** 0.5


def straight(name: str) -> Tensor:
    """RED-diff with a stock pipeline and torch's Adam: the stock loop calls `step` in the place of its scheduler's."""
    pipe, given = pipeline(name), call(name)
    if FAMILIES[name]:
        given[FAMILIES[name]] = SCALE
    scheduler, kept = pipe.scheduler, dict[str, Any]()

    def step(output: Tensor, timestep: Any, sample: Tensor, *_: Any, return_dict: bool = True, **__: Any) -> Any:
        index = kept.get("index", 0)
        alpha, sigma = level(scheduler, index)
        flow = type(scheduler).__name__.startswith("Flow")
        x0 = sample - sigma * output if flow else (sample - sigma * output) / alpha
        if not index:
            kept["mean"] = x0.detach().clone().requires_grad_()
            kept["adam"] = torch.optim.Adam([kept["mean"]], lr=LR, betas=(0.9, 0.99))
        mean = kept["mean"]
        with torch.enable_grad():
            (slope,) = torch.autograd.grad(darker(decoded(name, pipe, mean)).sum(), mean)
        mean.grad = WEIGHT * (mean.detach() - x0) - slope
        kept["adam"].step()
        kept["index"] = index + 1
        reached = mean.detach().clone()
        if index + 1 < STEPS:
            alpha, sigma = level(scheduler, index + 1)
            noise = [
                torch.randn(sample.shape[1:], generator=keyed(seed, index + 1, 0, 1, "red_diff")) for seed in SEEDS
            ]
            reached = alpha * reached + sigma * torch.stack(noise)
            if hasattr(scheduler, "_step_index") and scheduler._step_index is not None:
                scheduler._step_index += 1
        return type("Output", (), {"prev_sample": reached})() if return_dict else (reached,)

    with replaced(scheduler, "step", step):
        pipe(**given)
    return kept["mean"].detach()


@pytest.mark.parametrize("name", FAMILIES)
def test_it_is_an_optimizer_in_the_place_of_the_scheduler(name: str) -> None:
    """The stock pipeline's own guidance and torch's own Adam, with the noises of the documented generators."""
    pipe, mean = pipeline(name), straight(name)
    before = state(pipe)
    stack = f"cfg({SCALE}) | " * bool(FAMILIES[name]) + f"red_diff('mine', weight={WEIGHT}, lr={LR})"
    images = gs.guide(pipe, stack, objectives={"mine": objective(name)})(**call(name)).images
    if name == "DDIMPipeline":
        images, mean = torch.from_numpy(images).permute(0, 3, 1, 2), (mean / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(images, mean, atol=1e-4, rtol=1e-4)
    assert state(pipe) == before


def test_a_batch_is_its_samples() -> None:
    guided = gs.guide(pipeline("StableDiffusionPipeline"), "red_diff('mine', lr=0.2)", objectives={"mine": darker})
    both = guided(**call("StableDiffusionPipeline")).images
    given = {**call("StableDiffusionPipeline"), "prompt": "red", "generator": torch.Generator().manual_seed(SEEDS[1])}
    torch.testing.assert_close(guided(**given).images, both[1:], atol=1e-5, rtol=1e-4)
    assert guided.report is not None
    assert guided.report.evaluations == [STEPS]
    assert set(guided.report.steps[0].traces) == {"log_f"}


def test_it_begins_where_a_picture_is() -> None:
    """Image to image begins in the middle of the schedule, and the clean sample at the estimate there."""
    pipe = made("StableDiffusionXLImg2ImgPipeline")
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    given = arguments("StableDiffusionXLImg2ImgPipeline", 2, False)
    seen: list[Any] = []
    watch = {"observe": lambda one: seen.append(one.predictions[POSITIVE].denoised) or {}}
    guided = gs.guide(pipe, "red_diff('mine', lr=1e-6)", objectives={"mine": darker}, **watch)
    found = guided(**{**given, "output_type": "latent"}).images
    assert torch.allclose(found, seen[0], atol=1e-4)
    assert guided.run is not None
    assert len(seen) < guided.run.run.steps


class Noisy(Objective):
    space = "noisy"


class Rough(Objective):
    differentiable = False


def test_bad_input_is_one_line() -> None:
    pipe = pipeline("StableDiffusionPipeline")
    for given, error, words in (
        ({"mine": Noisy()}, UnsupportedError, "sees noisy samples"),
        ({"mine": Rough()}, RuleError, "has no gradient"),
        ({}, InputError, "there is no objective 'mine'"),
    ):
        with pytest.raises(error, match=words) as caught:
            gs.guide(pipe, "red_diff('mine')", objectives=given)("a cat", num_inference_steps=2)
        assert "\n" not in str(caught.value)
    for options, words in (({"lr": 0}, "lr must be above 0"), ({"weight": -1}, "weight"), ({"over": "x"}, "over")):
        with pytest.raises(RuleError, match=words):
            gs.REDDiff("known", **options)
    with pytest.raises(RuleError, match="optimizer"):
        gs.REDDiff("known", optimizer="lbfgs")
    for text in (
        "recur(2) | red_diff('border')",
        "cfgpp(0.4) | red_diff('border')",
        "red_diff('border') | replace('border')",
        "red_diff('border') | recur(2)",
        "red_diff('border') | red_diff('border')",
        "during(red_diff('border'), progress=(0, 0.5)) | tfg('blue', mu=1)",
    ):
        with pytest.raises(CompositionError, match="draws the samples anew before each evaluation"):
            gs.parse(text)
    with pytest.raises(CompositionError, match="works on the finished estimate"):
        gs.parse("red_diff('border') | cfg(3)")
    gs.parse("cfg(3) | tfg('blue', mu=0.1) | replace('border') | red_diff('border')")
    other = make_stable_diffusion()
    other.scheduler = DPMSolverMultistepScheduler.from_config(other.scheduler.config)
    with pytest.raises(UnsupportedSchedulerError, match="remembers earlier steps"):
        gs.guide(other, "red_diff('border')")


@pytest.mark.parametrize(
    "options", [{}, {"optimizer": "sgd", "over": "square"}, {"optimizer": "rmsprop"}, {"optimizer": "adamw"}]
)
def test_invariants(options: dict[str, Any]) -> None:
    check_move(gs.REDDiff("border", **options))
