"""Rules that take turns in a pipeline: samples are moved as if the scheduler had returned them so, at every door."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

import guidestack as gs
from guidestack.guidance import NEGATIVE, POSITIVE, Look, Move, Sight
from guidestack.guidance.errors import QueryError, RuleError, UnsupportedPipelineError, UnsupportedSchedulerError
from guidestack.guidance.query import Query
from guidestack.guidance.step import State, Step
from guidestack.guidance.testing import MixtureDenoiser

from .stock import stepping, trajectory
from .test_families import BATCH, arguments, seen
from .tiny import load

pytestmark = pytest.mark.filterwarnings("ignore:this network was distilled")

FAMILIES = [
    "StableDiffusionXLPipeline",  # an input that is scaled
    "StableDiffusionInpaintPipeline, 9 channels",  # samples are a part of the input
    "StableDiffusion3Img2ImgPipeline",  # a run that begins midway
    "FluxPipeline",  # one call for each condition, packed samples
    "FluxKontextPipeline",  # a picture behind them
    "ZImagePipeline",  # a network that is negated
    "WanPipeline, two transformers",
    "LTXImageToVideoPipeline",  # a frame that stays
    "PixArtAlphaPipeline",  # learned variances
    "StableAudioPipeline, stochastic",
]


@dataclass(frozen=True)
class Swell(Move):
    """Multiplies the samples by 1.05 after each step but the last, and may look at them before."""

    asking: str = ""

    def asks(self) -> frozenset[Query]:
        return frozenset({POSITIVE, NEGATIVE}) if self.asking == "both" else frozenset()

    def queries(self, step: Step, state: State) -> dict[Query, None]:
        return {}

    def turns(self, step: Step, state: State) -> int:
        return int(step.before is not None)

    def look(self, x: Tensor, step: Step, state: State) -> Look | None:
        return Look(dict.fromkeys(self.asks()), guided=self.asking == "guided") if self.asking else None

    def turn(self, x: Tensor, sight: Sight, step: Step, state: State) -> tuple[Tensor, State]:
        return 1.05 * x, state

    def __str__(self) -> str:
        return "swell()"


@cache
def made(name: str) -> Any:
    return load(name).make()


def room(name: str) -> Any:
    """The pipeline with a scheduler of the first order."""
    pipe = made(name)
    if "DPM" in type(pipe.scheduler).__name__ and "Cosine" not in type(pipe.scheduler).__name__:
        from diffusers import DDIMScheduler

        pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    return pipe


@pytest.mark.parametrize("name", FAMILIES)
def test_the_scheduler_and_the_network_go_on_from_where_samples_were_moved_to(name: str) -> None:
    pipe = room(name)
    given = arguments(name, num_inference_steps=4)
    try:
        guided = gs.guide(pipe, gs.CFG(3) | Swell())
    except UnsupportedSchedulerError:
        pytest.skip("a scheduler that remembers")
    steps: list[Tensor] = []

    def swell(reached: Tensor) -> None:
        steps.append(reached.clone())
        reached.mul_(1.05)

    with stepping(pipe, swell):
        gs.guide(pipe, "cfg(3)")(**arguments(name, num_inference_steps=4))
    moved = trajectory(pipe, guided, given)
    assert torch.allclose(seen(name, moved), seen(name, torch.stack(steps)), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(
        moved[-1], trajectory(pipe, gs.guide(pipe, "cfg(3)"), arguments(name, num_inference_steps=4))[-1]
    )


@pytest.mark.parametrize("name", ["StableDiffusionXLPipeline", "FluxPipeline", "PixArtAlphaPipeline"])
@pytest.mark.parametrize("asking", ["both", "guided"])
def test_turns_are_counted_and_change_nothing_else(name: str, asking: str) -> None:
    pipe, calls = room(name), []
    denoiser = pipe.transformer if hasattr(pipe, "transformer") else pipe.unet
    silent = trajectory(pipe, gs.guide(pipe, gs.CFG(3) | Swell()), arguments(name, num_inference_steps=3))
    guided = gs.guide(pipe, gs.CFG(3) | Swell(asking))
    hook = denoiser.register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        asked = trajectory(pipe, guided, arguments(name, num_inference_steps=3))
    finally:
        hook.remove()
    assert torch.equal(asked, silent)
    assert guided.report is not None
    assert guided.report.evaluations == [2 * 5] * BATCH
    assert guided.report.calls == len(calls)
    assert [record.turn for record in guided.report.steps] == [0, 1, 0, 1, 0]


@pytest.mark.parametrize(
    ("stack", "scheduler", "evaluations"),
    [
        ("langevin(2, power=3, snr=0.2)", "DDIMScheduler", 4 + 3 * 4),
        ("cfg(3) | langevin()", "EulerAncestralDiscreteScheduler", 8 + 3 * 2),
        ("cfg(3) | recur(2)", "DDIMScheduler", 16),
        ("cfgpp(0.6) | recur(2)", "EulerAncestralDiscreteScheduler", 16),
        ("cfg(3) | zigzag(0.5)", "EulerDiscreteScheduler", 24),
        ("cfg(3) | recur(2, length=3)", "DDIMScheduler", 16),
        ("cfg(3) | recur(2, length=4)", "EulerAncestralDiscreteScheduler", 16),
        ("cfgpp(1) | fsg(5.5, ((0, 0.5, 1), (0.25, 0.25, 2)))", "EulerDiscreteScheduler", 8 + 3 * 3),
        ("cfg(3) | cfg_mp(1)", "DDIMScheduler", 16),
    ],
)
def test_a_move_is_the_same_in_a_pipeline_and_in_the_plain_loop(stack: str, scheduler: str, evaluations: int) -> None:
    import diffusers

    name = "StableDiffusionXLPipeline"
    pipe = made(name)
    own, pipe.scheduler = pipe.scheduler, getattr(diffusers, scheduler).from_config(pipe.scheduler.config)
    try:
        given = arguments(name, num_inference_steps=4)
        given["generator"] = [torch.Generator().manual_seed(seed) for seed in range(BATCH)]
        conditions: dict[str, Any] = {}

        def told(module: Any, args: Any, kwargs: Any) -> None:
            added = kwargs["added_cond_kwargs"]
            rows = {"encoder_hidden_states": kwargs["encoder_hidden_states"], **added}
            for place, half in enumerate(("negative:0", "positive")):
                own = {key: value.chunk(2)[place] for key, value in rows.items()}
                if len(own["time_ids"]) == BATCH:
                    conditions.setdefault(half, own)

        hook = pipe.unet.register_forward_pre_hook(told, with_kwargs=True)
        guided = gs.guide(pipe, stack)
        reached = trajectory(pipe, guided, given)
        hook.remove()

        def model(x: Tensor, level: Any, told: dict[str, Tensor]) -> Tensor:
            added = {key: value for key, value in told.items() if key != "encoder_hidden_states"}
            at = min(range(4), key=lambda place: abs(levels[place] - level.k_sigma))
            timestep = pipe.scheduler.timesteps[at]
            scaled = x if scheduler == "DDIMScheduler" else x / (level.sigma**2 + 1) ** 0.5
            return pipe.unet(scaled, timestep, told["encoder_hidden_states"], added_cond_kwargs=added).sample

        from guidestack.samplers import grid

        pipe.scheduler.set_timesteps(4)
        levels = [point.level.k_sigma for point in grid(pipe.scheduler).points]
        size = reached.shape[2:]
        plain = gs.sample(model, stack, pipe.scheduler, conditions=conditions, shape=size, seeds=range(BATCH), steps=4)
        assert plain.report.evaluations == guided.report.evaluations == [evaluations] * BATCH
        assert torch.allclose(reached[-1], plain.x, atol=1e-4, rtol=1e-3)
    finally:
        pipe.scheduler = own


@pytest.mark.parametrize(
    ("stack", "evaluations"),
    [
        ("cfg(3) | recur(2)", 16),
        ("cfg(3) | recur(3, length=2)", 24),  # the jump at step 0 leads back to noise alone, that at step 2 does not
        ("cfg(3) | recur(2, length=3)", 16),  # the last jump has one step
        ("cfgpp(1) | fsg(5.5, ((0, 0.5, 1), (0.25, 0.25, 2)))", 8 + 3 * 3),
        ("cfg(3) | zigzag(0.5)", 24),
    ],
)
def test_a_move_is_the_same_in_a_pipeline_of_flows_and_in_the_plain_loop(stack: str, evaluations: int) -> None:
    name = "StableDiffusion3Pipeline"
    pipe = made(name)
    given = arguments(name, num_inference_steps=4, output_type="latent")
    given["generator"] = [torch.Generator().manual_seed(seed) for seed in range(BATCH)]
    conditions: dict[str, Any] = {}

    def told(module: Any, args: Any, kwargs: Any) -> None:
        rows = {key: kwargs[key].chunk(2) for key in ("encoder_hidden_states", "pooled_projections")}
        if len(kwargs["hidden_states"]) == 2 * BATCH:
            for place, half in enumerate(("negative:0", "positive")):
                conditions.setdefault(half, {key: halves[place] for key, halves in rows.items()})

    hook = pipe.transformer.register_forward_pre_hook(told, with_kwargs=True)
    guided = gs.guide(pipe, stack)
    reached = guided(**given).images
    hook.remove()

    def model(x: Tensor, level: Any, told: dict[str, Tensor]) -> Tensor:
        time = torch.full((len(x),), 1000 * level.sigma)
        return pipe.transformer(hidden_states=x, timestep=time, **told).sample

    size = reached.shape[1:]
    plain = gs.sample(model, stack, pipe.scheduler, conditions=conditions, shape=size, seeds=range(BATCH), steps=4)
    assert plain.report.evaluations == guided.report.evaluations == [evaluations] * BATCH
    assert torch.allclose(reached, plain.x, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("stack", ["cfg(3) | recur(2, length=2)", "cfg(3) | fsg(5.5, ((0, 0.5, 1),))"])
@pytest.mark.parametrize(
    "name",
    [
        "LTXImageToVideoPipeline",
        "WanPipeline, a timestep for each token",
        "WanImageToVideoPipeline, a timestep for each token",
    ],
)
def test_what_looks_at_other_levels_is_refused_where_each_token_has_a_time(name: str, stack: str) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    pipe = load(name).make()
    pipe.scheduler = FlowMatchEulerDiscreteScheduler()
    with pytest.raises(UnsupportedPipelineError) as said:
        gs.guide(pipe, stack)(**arguments(name, num_inference_steps=4))
    text = str(said.value)
    assert text.startswith(f"{gs.guide(pipe, stack).stack} ")
    assert type(pipe).__name__ in text
    assert text.endswith("in guidestack.sample")
    # From pictures the scheduler does not see the samples that the network sees, and no step is taken beside its own.
    first = "takes steps of its own" if "Image" in name and "recur" in stack else "a time for each token"
    assert first in text
    assert "\n" not in text
    guided = gs.guide(pipe, "cfg(3) | langevin()")  # what stays at the level of the step runs
    guided(**arguments(name, num_inference_steps=2))
    assert guided.report is not None
    assert guided.report.evaluations == [2 + 4] * BATCH


def test_what_has_no_room_for_turns_is_refused_by_name() -> None:
    import diffusers

    pipe = load("StableDiffusionXLPipeline").make()
    for name in ("HeunDiscreteScheduler", "LMSDiscreteScheduler", "UniPCMultistepScheduler"):
        pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config)
        with pytest.raises(
            UnsupportedSchedulerError, match=f"langevin.*{name} evaluates more than once a step or"
        ) as said:
            gs.guide(pipe, "cfg(3) | langevin()")
        assert "\n" not in str(said.value)
        gs.guide(pipe, "cfg(3) | langevin(0)")
    guided = gs.guide(pipe, "cfg(3)")
    guided.stack = "cfg(3) | langevin()"
    with pytest.raises(UnsupportedSchedulerError, match="UniPCMultistepScheduler"):
        guided(**arguments("StableDiffusionXLPipeline", num_inference_steps=3))


def test_feature_caches_are_refused() -> None:
    from diffusers.hooks import FirstBlockCacheConfig

    pipe = load("FluxPipeline").make()
    pipe.transformer.enable_cache(FirstBlockCacheConfig(0.1))
    with pytest.raises(UnsupportedPipelineError, match="keeps features from one step to the next"):
        gs.guide(pipe, "cfg(3) | langevin()")(**arguments("FluxPipeline"))


def test_what_contrasts_needs_an_unconditional_branch(new_pipe: Any) -> None:
    from diffusers import DDPMScheduler

    pipe = new_pipe(time_cond_proj_dim=8)
    pipe.scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    for stack in ("langevin(power=3)", "resample(2, 3)", "fsg(5.5)", "cfg_mp()", "zigzag()"):
        with pytest.raises(UnsupportedPipelineError, match="guidance-distilled") as said:
            gs.guide(pipe, stack)
        assert "\n" not in str(said.value)
    gs.guide(pipe, "langevin(power=1)")
    mixture = gs.guidance.GaussianMixture.example(shape=(1,))
    rows = {"positive": mixture.condition(0).expand(2, -1)}
    for stack in ("langevin(power=3)", "resample(2, 3)"):
        with pytest.raises(QueryError, match="nothing here answers 'negative'") as unknown:
            gs.sample(
                MixtureDenoiser(mixture), stack, pipe.scheduler, conditions=rows, shape=(1,), seeds=(0, 1), steps=3
            )
        assert "\n" not in str(unknown.value)


def test_particles_of_a_pipeline_have_one_prompt() -> None:
    from diffusers import DDPMScheduler

    name = "StableDiffusionXLPipeline"
    pipe = load(name).make()
    pipe.scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    guided = gs.guide(pipe, "resample(2, 3, clamp=1)")
    given = arguments(name, batch=2, num_inference_steps=3)
    with pytest.raises(RuleError, match="those from 0 on have several; give num_images_per_prompt=2"):
        guided(**given)
    with pytest.raises(RuleError, match="a batch of 3 samples does not divide"):
        guided(
            prompt="a cat", negative_prompt="dog", num_images_per_prompt=3, num_inference_steps=3, height=16, width=16
        )
    given = arguments(name, batch=2, num_inference_steps=3, num_images_per_prompt=2)
    given["generator"] = [torch.Generator().manual_seed(seed) for seed in range(4)]
    guided(**given)
    assert guided.report is not None
    assert guided.report.evaluations == [6] * 4
    assert all(((one >= 1) & (one <= 2)).all() for one in (record.traces["ess"] for record in guided.report.steps))


@pytest.mark.parametrize("name", ["StableDiffusion3Pipeline", "FluxPipeline"])
def test_a_flow_model_is_asked_at_the_level_ahead(name: str) -> None:
    """Every call of the network, by the time that it is told: twice ahead for once at the step's own."""
    pipe, told = room(name), []
    guided = gs.guide(pipe, "rectified_cfg(2)")
    hook = pipe.transformer.register_forward_pre_hook(
        lambda module, args, given: told.append((len(given["hidden_states"]), float(given["timestep"].flatten()[0]))),
        with_kwargs=True,
    )
    try:
        guided(**arguments(name, num_inference_steps=3))
    finally:
        hook.remove()
    times = [float(time) for time in pipe.scheduler.timesteps] + [0.0]
    unit = 1000.0 if max(time for _, time in told) <= 1 else 1.0
    rows: dict[float, int] = {}
    for count, time in told:
        near = min(times, key=lambda known: abs(known - unit * time))
        assert near == pytest.approx(unit * time, abs=0.5)
        rows[near] = rows.get(near, 0) + count
    # Once at each step's own time, or twice where the pipeline asks its conditions one by one, and twice ahead.
    assert guided.report is not None
    assert sum(rows.values()) == guided.report.rows
    assert rows[0.0] == 2 * BATCH
    assert guided.report.evaluations == [9] * BATCH
