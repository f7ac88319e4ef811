"""Objectives through guide(): gradients through each family's denoiser and decoder, against differences of runs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

import guidestack as gs
from guidestack.guidance.errors import InputError, RuleError, UnsupportedPipelineError
from guidestack.guidance.observe import Seen
from guidestack.guidance.step import Step

from ..conftest import make_stable_diffusion
from .left import state
from .test_families import arguments, made
from .tiny import load

STEPS = 3
FAMILIES = [
    "StableDiffusionPipeline",
    "StableDiffusionXLPipeline",
    "StableDiffusionXLInpaintPipeline, 9 channels",
    "StableDiffusion3Pipeline",
    "FluxPipeline",
    "QwenImagePipeline",
    "HunyuanDiTPipeline",
]


@cache
def pipeline(name: str) -> Any:
    return make_stable_diffusion() if name == "StableDiffusionPipeline" else made(name)


def call(name: str, batch: int = 2, **more: Any) -> dict[str, Any]:
    if name == "StableDiffusionPipeline":
        seeds = [torch.Generator().manual_seed(seed) for seed in range(batch)]
        given = {"prompt": ["a cat", "red"][:batch], "generator": seeds, "output_type": "latent"}
        return {**given, "num_inference_steps": STEPS, **more}
    return {**arguments(name, batch, False), **more}


class Watch:
    """What was made of the second evaluation: the clean sample, how far a rule moved it, and x."""

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, seen: Seen) -> Mapping[str, Tensor]:
        self.seen += 1
        if self.seen == 2:  # the first one of a flow is pure noise, from which no gradient is taken
            base = seen.estimate.renoise or seen.estimate.prediction
            self.clean, self.x, self.level = base.denoised, base.x, seen.step.level
            self.moved = seen.estimate.prediction.denoised - base.denoised
            assert not base.native.requires_grad
        return {}


def linear(weights: Tensor) -> Any:
    """A linear function of the clean sample, as an objective of latents."""

    def objective(x0: Tensor) -> Tensor:
        return (weights * x0).flatten(1).sum(1)

    objective.space = "latents"  # type: ignore[attr-defined]
    return objective


def watched(name: str, stack: str, objective: Any = None, at: Tensor | None = None) -> tuple[Watch, gs.GuidedPipeline]:
    """A run whose second evaluation is at the samples `at`."""
    watch, more = Watch(), {}
    if at is not None:
        more["callback_on_step_end"] = lambda pipe, index, time, given: {"latents": at} if watch.seen == 1 else {}
    given = {} if objective is None else {"objectives": {"mine": objective}}
    guided = gs.guide(pipeline(name), stack, observe=watch, **given)
    guided(**call(name, **more))
    return watch, guided


@pytest.mark.parametrize("guidance", ["stack()", "cfg(3, against='null')"])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_gradient_through_the_denoiser_is_that_of_differences_of_runs(name: str, guidance: str) -> None:
    plain, _ = watched(name, guidance)
    weights = torch.randn(plain.x.shape[1:], generator=torch.Generator().manual_seed(5))
    stack = guidance if guidance != "stack()" else ""
    stack = " | ".join(filter(None, [stack, "tfg('mine', rho=0.5, over='constant')"]))
    seen, guided = watched(name, stack, linear(weights), plain.x)
    assert torch.equal(seen.x, plain.x)
    assert torch.allclose(seen.clean, plain.clean, atol=1e-6)
    assert guided.report.evaluations == [len(guided.report.steps) * (1 if guidance == "stack()" else 2)] * 2
    level = seen.level
    slope = seen.moved / (0.5 * (level.alpha**2 + level.sigma**2) / level.alpha)
    size = slope.flatten(1).norm(dim=1)
    ahead = slope / size.reshape(-1, *[1] * (slope.ndim - 1))
    h = 0.02 * float(plain.x.std())
    ends = [linear(weights)(watched(name, guidance, at=plain.x + side * h * ahead)[0].clean) for side in (1, -1)]
    assert torch.allclose((ends[0] - ends[1]) / (2 * h), size, rtol=0.02), name


def blue(x0: Tensor) -> Tensor:
    assert x0.shape[1] == 3
    return -(x0 - torch.tensor([0.0, 0.0, 1.0]).reshape(3, 1, 1)).square().flatten(1).sum(1)


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "QwenImagePipeline"])
def test_pictures_are_those_of_the_pipelines_own_decoder(name: str) -> None:
    pictures_are_its_own(pipeline(name), name)


def test_pictures_of_a_decoder_that_knows_its_latents_mean_and_deviation() -> None:
    name = "StableDiffusionXLPipeline"
    pipe = load(name).make()
    pipe.vae.register_to_config(latents_mean=[9.0, -20.0, 12.0, 30.0], latents_std=[3.0, 0.5, 2.0, 4.0])
    pictures_are_its_own(pipe, name)


def pictures_are_its_own(pipe: Any, name: str) -> None:
    pipe(**call(name))  # the first call of a pipeline leaves its arguments behind as attributes
    before = state(pipe)
    pictures: list[Tensor] = []

    def objective(x0: Tensor) -> Tensor:
        pictures.append(x0.detach())
        return blue(x0)

    # A move that is nothing: what the objective was shown last is what the pipeline returns.
    guided = gs.guide(pipe, "tfg('mine', mu=1e-9)", objectives={"mine": objective})
    made = guided(**{**call(name), "output_type": "pt"}).images
    assert pictures[0].shape == made.shape
    assert torch.allclose(pictures[-1].clamp(0, 1), made, atol=0.02)
    assert state(pipe) == before


STACKS = [
    "cfg(3, against='null') | tfg('mine', rho=0.3, mu=0.1)",
    "cfg(3, against='null') | elucd(0.3, 'mine')",
    "cfg(3, against='null') | classifier(0.3, 'mine', form='product')",
    "classifier_reference(3, 'mine', 'red', power=0.1)",
]


@pytest.mark.parametrize("stack", STACKS)
def test_a_batch_is_its_samples_and_slices_of_it(stack: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def ended(batch: int) -> Tensor:
        given = call("StableDiffusionPipeline", batch)
        found: Tensor = gs.guide(pipeline("StableDiffusionPipeline"), stack, objectives={"mine": blue})(**given).images
        return found

    together = ended(2)
    assert torch.allclose(ended(1), together[:1], atol=1e-4)
    monkeypatch.setattr("guidestack.pipelines.decoding.AT_ONCE", 1)
    assert torch.allclose(ended(2), together, atol=1e-4)


@pytest.mark.parametrize("rule", ["tfg('mine', rho=1, mu=1)", "elucd(1, 'mine')", "classifier(1, 'mine')"])
def test_a_constant_objective_is_the_plain_pipeline_to_the_bit(rule: str) -> None:
    pipe, given = pipeline("StableDiffusionPipeline"), {"objectives": {"mine": lambda x0: 0 * x0.sum((1, 2, 3))}}
    plain = gs.guide(pipe, "cfg(3)")(**call("StableDiffusionPipeline")).images
    steered = gs.guide(pipe, f"cfg(3) | {rule}", **given)(**call("StableDiffusionPipeline")).images
    assert torch.equal(plain, steered)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("rule", ["elucd(1, 'mine')", "classifier(1, 'mine', form='mean')"])
def test_the_schedule_of_the_mean_is_that_of_the_family(name: str, rule: str) -> None:
    """What the clean sample is moved by, from the levels of the run, in the papers' scaling of x."""
    plain, _ = watched(name, "stack()")
    weights = torch.randn(plain.x.shape[1:], generator=torch.Generator().manual_seed(5))
    seen: list[tuple[Tensor, Step]] = []

    def observe(one: Seen) -> Mapping[str, Tensor]:
        kept = one.estimate.renoise or one.estimate.prediction
        seen.append((one.estimate.prediction.denoised - kept.denoised, one.step))
        return {}

    gs.guide(pipeline(name), rule, observe=observe, objectives={"mine": linear(weights)})(**call(name))
    levels = seen[0][1].run.levels
    bars = [level.alpha**2 / (level.alpha**2 + level.sigma**2) for level in levels]
    betas = [(1 - after) / (1 - here) * (1 - here / after) for here, after in itertools.pairwise(bars)]
    for moved, step in seen:
        assert step.level == levels[step.index]
        sine = math.sin(math.pi * (len(betas) - 1 - step.index) / len(betas))
        weight = betas[step.index] + 0.3 * max(betas[: step.index + 1]) * sine * ("elucd" in rule)
        wanted = weight / math.sqrt(bars[step.index + 1]) * weights.expand_as(moved)
        assert torch.allclose(moved, wanted, atol=2e-3), step.index


def test_what_cannot_be_steered_is_refused_before_anything_runs() -> None:
    pipe = pipeline("StableDiffusionPipeline")
    with pytest.raises(InputError, match="there is no objective 'blues'; did you mean 'blue'"):
        gs.guide(pipe, "tfg('blues', rho=1)")
    with pytest.raises(UnsupportedPipelineError, match="steers by pictures, and WanPipeline has the autoencoder"):
        gs.guide(made("WanPipeline"), "tfg('blue', rho=1)")

    def files(x0: Tensor) -> Tensor:
        raise AssertionError

    files.differentiable = False  # type: ignore[attr-defined]
    with pytest.raises(RuleError, match="the objective 'files' has no gradient, and this rule needs one"):
        gs.guide(pipe, "tfg('files', rho=1)", objectives={"files": files})
    with torch.inference_mode(), pytest.raises(InputError, match=r"torch\.inference_mode"):
        gs.guide(pipe, "tfg('blue', rho=1)")(**call("StableDiffusionPipeline"))


def test_a_network_that_is_offloaded_is_refused_where_the_gradient_goes_through_it() -> None:
    pipe = make_stable_diffusion()
    from accelerate import cpu_offload

    cpu_offload(pipe.unet, torch.device("cpu"))
    with pytest.raises(UnsupportedPipelineError, match="UNet2DConditionModel is offloaded"):
        gs.guide(pipe, "tfg('blue', rho=1)")
    gs.guide(pipe, "tfg('blue', mu=1)")


def test_a_picture_of_another_size_is_refused_before_the_network_is_asked() -> None:
    pipe, asked = pipeline("StableDiffusionPipeline"), []
    about: dict[str, Any] = {"observe": lambda seen: asked.append(seen) or {}}
    guided = gs.guide(pipe, "tfg('known', mu=1)", objectives={"known": torch.zeros(3, 8, 16)}, **about)
    with pytest.raises(InputError, match="'known' is for 8x16 pixels, and the run makes 16x16"):
        guided(**call("StableDiffusionPipeline"))
    assert not asked
    guided(**call("StableDiffusionPipeline", height=8, width=16))
    assert asked


def test_memory_of_gradients_is_flat_over_the_steps() -> None:
    from guidestack.scripts.bench.memory import peak

    pipe = make_stable_diffusion()
    guided = gs.guide(pipe, "cfg(3) | tfg('blue', rho=1, mu=1)")
    given = call("StableDiffusionPipeline")
    del given["num_inference_steps"]
    guided(num_inference_steps=2, **given)  # what is made once
    few, many = (peak(lambda steps=steps: guided(num_inference_steps=steps, **given)) for steps in (2, 6))  # type: ignore[misc]
    plain = peak(lambda: gs.guide(pipe, "cfg(3)")(num_inference_steps=2, **given))
    assert many <= 1.05 * few
    assert few > 1.5 * plain  # a graph is there, and it is that of one step


def test_nothing_is_recorded_of_the_denoiser_where_the_gradient_does_not_go_through_it() -> None:
    pipe = make_stable_diffusion()
    kept: list[bool] = []
    pipe.unet.conv_out.register_forward_hook(lambda module, args, output: kept.append(output.requires_grad))
    for rule, recorded in (
        ("tfg('blue', mu=1)", False),
        ("classifier(1, 'blue')", False),
        ("tfg('blue', rho=1)", True),
    ):
        kept.clear()
        gs.guide(pipe, f"cfg(3) | {rule}")(**call("StableDiffusionPipeline"))
        assert kept == [recorded] * STEPS


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # the compiler looks at it as it traces
def test_a_compiled_network_has_the_gradient_of_the_plain_one() -> None:
    pipe, stack = make_stable_diffusion(), "cfg(3) | tfg('blue', rho=1)"
    plain = gs.guide(pipe, stack)(**call("StableDiffusionPipeline")).images
    pipe.unet.compile(backend="eager")
    assert torch.allclose(gs.guide(pipe, stack)(**call("StableDiffusionPipeline")).images, plain, atol=1e-5)
