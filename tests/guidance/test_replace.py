"""Replacement: known pixels are exact, the unknown part has the law of the method, and what bad input gets."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor

import guidestack as gs
from guidestack.guidance.errors import (
    CompositionError,
    InputError,
    RuleError,
    UnsupportedPipelineError,
    UnsupportedSchedulerError,
)
from guidestack.guidance.keyed import keyed
from guidestack.guidance.notation.objectives import objective
from guidestack.guidance.objectives import Determining
from guidestack.guidance.prediction import Level
from guidestack.guidance.testing import GaussianMixture, MixtureDenoiser, check_move, check_rule
from guidestack.samplers.levels import parameterization

from ..conftest import make_dit, make_stable_diffusion, make_unconditional
from ..pipelines.test_families import arguments, made

SIDE = 8
RANDOM = torch.Generator().manual_seed(5)
DATA = 0.1 + 0.8 * torch.rand(2, 3, SIDE, SIDE, generator=RANDOM, dtype=torch.float64)
GIVEN = torch.rand(3, SIDE, SIDE, generator=RANDOM)
HALF = torch.cat([GIVEN, torch.ones(1, SIDE, SIDE)])
HALF[3, :, SIDE // 2 :] = 0
MODEL = MixtureDenoiser(GaussianMixture(DATA, torch.tensor([0.2, 0.3]), torch.tensor([0.5, 0.5])))
CONDITIONS = {"positive": torch.tensor([[1.0, 0.3]]).expand(2, -1), "null": torch.ones(2, 2)}
CLEAN: dict[str, Any] = {"clip_sample": False, "timestep_spacing": "trailing"}
SCHEDULERS = {
    "ddim": lambda: DDIMScheduler(**CLEAN),
    "ddpm": lambda: DDPMScheduler(**CLEAN),
    "euler": EulerDiscreteScheduler,
    "euler-a": EulerAncestralDiscreteScheduler,
    "dpm++2m": DPMSolverMultistepScheduler,
    "unipc": UniPCMultistepScheduler,
    "flow-euler": FlowMatchEulerDiscreteScheduler,
    # Both end with noise, the second after a step that remembers another one.
    "ddim, noise": lambda: DDIMScheduler(**CLEAN, set_alpha_to_one=False),
    "dpm++2m, noise": lambda: DPMSolverMultistepScheduler(final_sigmas_type="sigma_min", timestep_spacing="trailing"),
}
MEASURED = {"known": HALF, "gray(0.3, 0.6, 0.1)": GIVEN, "superres(4)": GIVEN[:, ::4, ::4], "border('teal')": None}


def sampled(stack: Any, scheduler: Any, given: Any = HALF, seeds: Any = (3, 4), model: Any = MODEL, **more: Any) -> Any:
    by_name = {key.partition("(")[0]: value for key, value in MEASURED.items() if value is not None}
    settings = {"conditions": {name: rows[: len(seeds)] for name, rows in CONDITIONS.items()}, "steps": 5, **more}
    model = MixtureDenoiser(model.mixture, parameterization(scheduler))
    return gs.sample(
        model, stack, scheduler, shape=(3, SIDE, SIDE), seeds=seeds, dtype=torch.float64,
        objectives={**by_name, "known": given}, **settings,
    ).x  # fmt: skip


@pytest.mark.parametrize("guidance", ["", "cfg(3) | ", "cfgpp(0.5) | ", "cfg(3) | tfg('blue', mu=0.1) | "])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_known_pixels_are_exact_and_the_others_are_sampled(name: str, guidance: str) -> None:
    x = sampled(f"{guidance}replace('known')", SCHEDULERS[name]())
    assert torch.allclose(x[..., :4], GIVEN.double()[..., :4].expand_as(x[..., :4]), atol=2e-5)
    assert (x[0] - x[1])[..., 4:].abs().min() > 0
    assert (x[..., 4:] - GIVEN[..., 4:]).abs().mean() > 0.1


@pytest.mark.parametrize("text", MEASURED)
@pytest.mark.parametrize("name", ["ddim", "ddpm", "euler", "flow-euler", "ddim, noise"])
@pytest.mark.parametrize("fresh", [False, True])
def test_measurements_are_exact(text: str, name: str, fresh: bool) -> None:
    x = sampled(gs.CFG(2) | gs.Replace(text, fresh), SCHEDULERS[name]())
    measurement = objective(text, {text.partition("(")[0]: MEASURED[text]} if MEASURED[text] is not None else {})
    assert float(measurement(x).abs().max()) < 1e-8
    plain = sampled("cfg(2)", SCHEDULERS[name]())
    assert float(measurement(plain).abs().min()) > 1e-2


@pytest.mark.parametrize("text", MEASURED)
def test_the_part_is_a_projection_of_which_the_measurements_are(text: str) -> None:
    """P is symmetric, P P = P, A P = A by the measurements' own A, and the picture has them."""
    name = text.partition("(")[0]
    given = MEASURED[text]
    measurement: Any = objective(text, {} if given is None else {name: given})
    assert isinstance(measurement, Determining)
    x, other = DATA, DATA.flip(0) - 0.3
    part = measurement.determined(x)
    assert torch.allclose(measurement.determined(part), part, atol=1e-12)
    assert torch.allclose((part * other).sum(), (x * measurement.determined(other)).sum())
    having = measurement.having(SIDE, SIDE).double()
    values = [measurement(having + other - measurement.determined(other)), measurement(having[None].expand_as(x))]
    assert torch.allclose(torch.stack(values), torch.zeros(2, 2).double(), atol=1e-12)
    if hasattr(measurement, "measure"):
        assert torch.allclose(measurement.measure(part), measurement.measure(x))
    else:
        assert set((part / x).flatten().tolist()) <= {0.0, 1.0}
        assert 0 < float((part / x).mean()) < 1


@pytest.mark.parametrize("fresh", [False, True])
def test_each_step_is_the_loop_of_the_paper(fresh: bool) -> None:
    """DDIM by hand: with `fresh` every x behind a step has known pixels noised anew by the documented generators."""
    scheduler = DDIMScheduler(**CLEAN)
    seen: list[Level] = []
    x = torch.randn((1, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    watch = {"start": x.clone(), "observe": lambda one: seen.append(one.step.level) or {}}
    found = sampled(gs.Replace("known", fresh), scheduler, seeds=(3,), **watch)
    levels = [*seen, Level.ve(0.0)]
    rows = {"positive": CONDITIONS["positive"][:1]}
    for index, (level, after) in enumerate(itertools.pairwise(levels)):
        if fresh and index:
            z = torch.randn((3, SIDE, SIDE), generator=keyed(3, index, 0, 1, "replace")).double()
            x[..., :4] = (level.alpha * GIVEN.double() + level.sigma * z)[..., :4]
        eps = MODEL(x, level, rows["positive"])
        x0 = (x - level.sigma * eps) / level.alpha
        x0[..., :4] = GIVEN.double()[..., :4]
        x = after.alpha * x0 + after.sigma * (x - level.alpha * x0) / level.sigma
    assert torch.allclose(found, x, atol=1e-5)


def test_a_batch_is_its_samples_and_fresh_noise_is_by_seed() -> None:
    for stack in ("cfg(2) | replace('known')", "cfg(2) | replace('known', fresh=True)"):
        both, one = sampled(stack, DDIMScheduler(**CLEAN)), sampled(stack, DDIMScheduler(**CLEAN), seeds=(4,))
        assert torch.allclose(both[1:], one, atol=1e-12)
    kept, fresh = (sampled(gs.Replace("known", one), DDIMScheduler(**CLEAN)) for one in (False, True))
    assert (kept - fresh)[..., 4:].abs().max() > 1e-3


# --- the law -------------------------------------------------------------------------------------------------------

COLUMNS, GIVEN_VALUE, STEPS = 3000, 0.7, 40


def pairs(correlation: float) -> Any:
    """The exact network of pictures of two rows, N(0, 1) each, whose columns are pairs of that correlation."""

    def model(x: Tensor, level: Level, conditions: Any) -> Tensor:
        return (x - level.alpha * torch.einsum("ij,bcjn->bcin", gain(correlation, level), x)) / level.sigma

    return model


def gain(correlation: float, level: Level) -> Tensor:
    """The matrix from a noisy pair to its mean when clean."""
    law = torch.tensor([[1.0, correlation], [correlation, 1.0]], dtype=torch.float64)
    return level.alpha * law @ torch.linalg.inv(level.alpha**2 * law + level.sigma**2 * torch.eye(2).double())


def rows(stack: str, correlation: float, kind: Any, seen: list[Level] | None = None) -> Tensor:
    """Pictures of which the first row is known, 0.7 throughout: 9000 pairs."""
    y = torch.full((4, 2, COLUMNS), GIVEN_VALUE)
    y[3, 0], y[3, 1] = 1, 0
    made = gs.sample(
        pairs(correlation), stack, kind(**CLEAN), conditions={"positive": torch.zeros(1, 1)}, shape=(3, 2, COLUMNS),
        seeds=[0], steps=STEPS, dtype=torch.float64, objectives={"known": y},
        observe=None if seen is None else lambda one: seen.append(one.step.level) or {},
    ).x  # fmt: skip
    assert stack == "stack()" or torch.allclose(made[0, :, 0], y[:3, 0].double(), atol=1e-6)
    return made[0]


@pytest.mark.parametrize("kind", [DDIMScheduler, DDPMScheduler])
@pytest.mark.parametrize("fresh", [False, True])
def test_the_law_of_the_unknown_part_is_that_of_the_method(fresh: bool, kind: Any) -> None:
    """Mean and covariance of a pair, carried through the steps as matrices: 9000 pairs are within three deviations."""
    seen: list[Level] = []
    unknown = rows(f"replace('known', fresh={fresh})", 0.8, kind, seen)[:, 1]
    mean, covariance = torch.zeros(2).double(), torch.eye(2).double()
    levels = [*seen, Level.ve(0.0)]
    for index, (level, after) in enumerate(itertools.pairwise(levels)):
        if fresh and index:
            mean[0], covariance[0, :], covariance[:, 0] = level.alpha * GIVEN_VALUE, 0, 0
            covariance[0, 0] = level.sigma**2
        matrix, offset = gain(0.8, level), torch.tensor([GIVEN_VALUE, 0]).double()
        matrix[0] = 0  # the clean sample is matrix x + offset
        added = 0.0
        if kind is DDPMScheduler and after.sigma:
            ratio = (level.alpha / after.alpha) ** 2
            added = (after.sigma / level.sigma) ** 2 * (1 - ratio)
        noise = math.sqrt(after.sigma**2 - added) / level.sigma
        step = after.alpha * matrix + noise * (torch.eye(2) - level.alpha * matrix)
        mean = step @ mean + (after.alpha - noise * level.alpha) * offset
        covariance = step @ covariance @ step.T + added * torch.eye(2)
    size, variance = 3 * COLUMNS, float(covariance[1, 1])
    assert abs(float(unknown.mean() - mean[1])) < 3 * math.sqrt(variance / size)
    assert abs(float(unknown.var()) - variance) < 3 * variance * math.sqrt(2 / size)


def test_independent_parts_keep_their_law() -> None:
    """Without correlation the unknown part is that of the sampler without the rule."""
    without = rows("stack()", 0.0, DDIMScheduler)
    for fresh in (False, True):
        beside = rows(f"replace('known', fresh={fresh})", 0.0, DDIMScheduler)
        assert torch.allclose(beside[:, 1], without[:, 1], atol=1e-9)


def test_moves_bring_dependent_parts_nearer_to_the_conditional_law() -> None:
    """Of correlation 0.8 the conditional mean is 0.56; RePaint, the last one, comes nearest."""
    stacks = ("replace('known')", "langevin(3) | replace('known')", "replace('known') | recur(10)")
    means = [float(rows(stack, 0.8, DDPMScheduler)[:, 1].mean()) for stack in stacks]
    assert 0.3 < means[0] < 0.4 < means[1] < 0.48 < means[2] < 0.56


# --- invariants, and what bad input gets ---------------------------------------------------------------------------


def test_invariants() -> None:
    for text in ("replace('border')", "replace('border(\"teal\", share=0.2)')"):
        check_rule(gs.parse(text).rules[0])
    check_move(gs.Replace("border", fresh=True))


def test_bad_input_is_one_line() -> None:
    def refused(kind: type[Exception], match: str, stack: str = "replace('known')", **more: Any) -> None:
        with pytest.raises(kind, match=match) as caught:
            sampled(stack, more.pop("scheduler", DDIMScheduler)(), **more)
        assert "\n" not in str(caught.value)

    pipe = make_stable_diffusion()
    for text in ("blue", "blur(2)", "projection(9)"):
        given = {} if text == "blue" else {text.partition("(")[0]: GIVEN}
        with pytest.raises(RuleError, match=r"does not say which part of a picture it determines; 'known', 'gray'"):
            gs.guide(pipe, f"replace({text!r})", objectives=given)
    refused(InputError, "the picture of the objective 'known' is for 4x8 pixels, and the run", given=HALF[:, :4])
    refused(InputError, "is opaque nowhere: no pixel of it is known", given=torch.cat([GIVEN, 0.5 * HALF[3:]]))
    refused(InputError, "takes a picture", given=3)
    refused(InputError, "no encoder from pictures to samples is known; give encode=", decode=lambda x0: x0)
    for scheduler in (DPMSolverMultistepScheduler, UniPCMultistepScheduler):
        message = r"replace\('known', fresh=True\) moves samples between two steps, and .* remembers earlier steps"
        refused(UnsupportedSchedulerError, message, "replace('known', fresh=True)", scheduler=scheduler)
    with pytest.raises(CompositionError, match="works on the finished estimate"):
        gs.parse("replace('known') | cfg(3)")
    with pytest.raises(RuleError, match="fresh"):
        gs.Replace("known", fresh=3)  # type: ignore[arg-type]
    with pytest.raises(RuleError, match="weights red, green and blue must be above 0"):
        objective("gray(0, 0, 0)", {"gray": GIVEN})
    with pytest.raises(RuleError, match="share is above 0 and below"):
        objective("border('white', share=0.5)", {})


# --- latents -------------------------------------------------------------------------------------------------------


def test_latents_of_an_autoencoder_have_the_picture_where_it_is_known() -> None:
    """A cell is known where all of its pixels are; latents there are what the pipeline's own encoder makes."""
    pipe = make_stable_diffusion()
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    factor = pipe.vae_scale_factor
    side = pipe.unet.config.sample_size * factor
    picture = torch.rand(4, side, side, generator=torch.Generator().manual_seed(1))
    picture[3] = 1
    picture[3, :, side // 2 - 1 :] = 0  # a column short of half of the cells
    guided = gs.guide(pipe, "cfg(3) | replace('known')", objectives={"known": picture})
    latents = guided(
        "a cat", num_inference_steps=2, output_type="latent", generator=torch.Generator().manual_seed(0)
    ).images
    white = torch.where(picture[3] == 1, picture[:3], 1.0)
    mean = pipe.vae.encode(2 * white[None] - 1).latent_dist.mode() * pipe.vae.config.scaling_factor
    known = (side // 2 - 1) // factor
    assert 0 < known < latents.shape[-1]
    assert torch.allclose(latents[..., :known], mean[..., :known], atol=1e-4)
    assert not torch.allclose(latents[..., known:], mean[..., known:], atol=1e-2)
    bordered = gs.guide(pipe, "replace('border')")("a cat", num_inference_steps=2, output_type="latent").images
    assert torch.isfinite(bordered).all()
    guided = gs.guide(pipe, "replace('gray')", objectives={"gray": picture})
    with pytest.raises(InputError, match="determines a part of pictures, and not of the latents of an autoencoder"):
        guided("a cat", num_inference_steps=2)


@pytest.mark.parametrize("name", ["DDPMPipeline", "DDIMPipeline"])
@pytest.mark.parametrize("text", ["known", "gray", "superres(4)"])
def test_a_pipeline_of_pixels_has_what_is_known_exactly(text: str, name: str) -> None:
    pipe = make_unconditional(name)
    side = pipe.unet.config.sample_size
    picture = torch.rand(4, side, side, generator=torch.Generator().manual_seed(1))
    picture[3] = 1
    picture[3, :, side // 2 :] = 0
    given = {"known": picture, "gray": picture[:3], "superres(4)": picture[:3, ::4, ::4]}[text]
    by_name = {text.partition("(")[0]: given}
    pipe.scheduler.register_to_config(clip_sample=False)
    found: list[Any] = []
    watch = {"observe": lambda one: found.append(one.estimate) or {}}
    guided = gs.guide(pipe, f"replace({text!r})", objectives=by_name, **watch)
    images = guided(num_inference_steps=2, output_type="np", generator=torch.Generator().manual_seed(0)).images
    clean = found[-1].prediction.denoised / 2 + 0.5
    assert float(objective(text, by_name)(clean).abs().max()) < 1e-8
    assert torch.allclose(torch.from_numpy(images).permute(0, 3, 1, 2), clean.clamp(0, 1), atol=1e-5)


@pytest.mark.parametrize("guidance", ["", "cfg(3) | ", "cfgpp(0.5) | "])
@pytest.mark.parametrize("ends", [False, True])
def test_latents_are_exact_where_the_schedule_ends_with_noise(ends: bool, guidance: str) -> None:
    """Stable Diffusion's own DDIM ends at alpha_bar of the first timestep; a window ends before, and leaves it."""
    pipe = make_stable_diffusion()
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, set_alpha_to_one=False)
    side = pipe.unet.config.sample_size * pipe.vae_scale_factor
    picture = torch.rand(3, side, side, generator=torch.Generator().manual_seed(1))
    rule = "replace('known')" if ends else "during(replace('known'), progress=(0, 0.5))"
    guided = gs.guide(pipe, guidance + rule, objectives={"known": picture})
    generator = torch.Generator().manual_seed(0)
    latents = guided("a cat", num_inference_steps=2, output_type="latent", generator=generator).images
    mean = pipe.vae.encode(2 * picture[None] - 1).latent_dist.mode() * pipe.vae.config.scaling_factor
    assert torch.allclose(latents, mean, atol=1e-5) == ends


def test_latents_that_are_packed_are_refused() -> None:
    pipe = made("FluxPipeline")
    pipe.vae = pipe.vae or make_stable_diffusion().vae
    with pytest.raises(UnsupportedPipelineError, match="it packs its latents"):
        gs.guide(pipe, "replace('border')")(**arguments("FluxPipeline", 1, False))


def test_classes_have_a_picture_of_their_own_size() -> None:
    """DiT does not say by how much its autoencoder reduces a side."""
    picture = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(1))
    pipe, clean = make_dit(), []
    watch = {"observe": lambda one: clean.append(one.estimate.prediction.denoised) or {}}
    guided = gs.guide(pipe, "cfg(2) | replace('known')", objectives={"known": picture}, **watch)
    guided(class_labels=[1], num_inference_steps=2, output_type="np", generator=torch.Generator().manual_seed(0))
    mean = pipe.vae.encode(2 * picture[None] - 1).latent_dist.mode() * pipe.vae.config.scaling_factor
    assert torch.allclose(clean[-1], mean, atol=1e-5)


def test_a_cell_of_latents_is_known_where_all_of_its_pixels_are() -> None:
    picture = torch.ones(4, 8, 8)
    picture[3, :, 5:] = 0
    picture[3, 2, 0] = 0.99
    known = objective("known", {"known": picture})
    wanted = torch.tensor([[1.0, 1, 0, 0], [0, 1, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0]])
    assert torch.equal(known.determined(torch.ones(2, 5, 4, 4)), wanted.expand(2, 5, 4, 4))


@pytest.mark.parametrize("guidance", ["", "cfg(3) | ", "cfgpp(0.5) | ", "cfg(3) | tfg('blue', mu=0.1) | "])
def test_without_fresh_noise_the_known_part_keeps_that_of_the_first_x(guidance: str) -> None:
    noises = []

    def watch(seen: Any) -> dict[str, Tensor]:
        level, x = seen.step.level, seen.estimate.prediction.x
        noises.append(((x - level.alpha * GIVEN) / level.sigma)[..., :4])
        return {}

    for name in ("ddim", "dpm++2m"):
        noises.clear()
        sampled(f"{guidance}replace('known')", SCHEDULERS[name](), observe=watch)
        assert len(noises) == 5
        assert all(torch.allclose(one, noises[0], atol=1e-3) for one in noises)
