"""guide(): what it evaluates, what it refuses, and what it leaves behind: nothing."""

from __future__ import annotations

import copy
import threading
from collections.abc import Mapping
from typing import Any

import diffusers
import pytest
import torch

import guidestack as gs
from guidestack.guidance.errors import (
    GuidanceNotAppliedError,
    InputError,
    NonFiniteError,
    UnsupportedPipelineError,
    UnsupportedSchedulerError,
)
from guidestack.guidance.query import Query

GIVEN: Mapping[str, Any] = {"num_inference_steps": 4, "output_type": "latent"}


def seeded(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(sample) for sample in range(count)]


def by_hand(pipe: Any, prompts: list[str], negatives: list[str], combine: Any) -> torch.Tensor:
    """An independent loop: DDIM by its formula, one network call for each prompt, `combine` for the guidance."""
    x = torch.stack([torch.randn(4, 8, 8, generator=generator) for generator in seeded(len(prompts))])
    pipe.scheduler.set_timesteps(GIVEN["num_inference_steps"])
    embedded = {
        name: pipe.encode_prompt(texts, "cpu", 1, False)[0]
        for name, texts in {"positive": prompts, "negative": negatives, "null": [""] * len(prompts)}.items()
    }
    alphas = pipe.scheduler.alphas_cumprod
    for index, t in enumerate(pipe.scheduler.timesteps):
        before = int(t) - 1000 // GIVEN["num_inference_steps"]
        now, then = alphas[int(t)], alphas[before] if before >= 0 else torch.tensor(1.0)
        with torch.no_grad():
            eps = combine({name: pipe.unet(x, t, text).sample for name, text in embedded.items()}, index)
        x = then.sqrt() * (x - (1 - now).sqrt() * eps) / now.sqrt() + (1 - then).sqrt() * eps
    return x


@pytest.fixture
def plain(pipe: Any) -> Any:
    from diffusers import DDIMScheduler

    pipe.scheduler = DDIMScheduler(steps_offset=1, clip_sample=False)
    return pipe


@pytest.mark.filterwarnings("ignore:a negative prompt was given")  # on purpose: it must not come in by the back door
@pytest.mark.parametrize(
    ("stack", "combine"),
    [
        (gs.CFG(3), lambda e, i: e["negative"] + 3 * (e["positive"] - e["negative"])),
        (gs.CFG(3, against="null"), lambda e, i: e["null"] + 3 * (e["positive"] - e["null"])),
        (
            gs.CFG(3) | gs.CFG(2, against="null"),
            lambda e, i: e["positive"] + 2 * (e["positive"] - e["negative"]) + (e["positive"] - e["null"]),
        ),
        (
            gs.During(gs.CFG(3), progress=(0.25, 0.75)),
            lambda e, i: e["positive"] + 2 * (e["positive"] - e["negative"]) * (i in (1, 2)),
        ),
    ],
    ids=["cfg", "against null", "two contrasts", "window"],
)
def test_against_an_independent_loop(plain: Any, stack: gs.Rule, combine: Any) -> None:
    prompts, negatives = ["a cat", "red", "sea"], ["dog", "blue", "land"]
    wanted = by_hand(plain, prompts, negatives, combine)
    seen = gs.guide(plain, stack)(prompts, negative_prompt=negatives, generator=seeded(3), **GIVEN).images
    assert (seen - wanted).abs().max() < 1e-5 * wanted.abs().max()
    # The tiny network hears its prompts: another combination is far away.
    assert (seen - by_hand(plain, prompts, negatives, lambda e, i: e["positive"])).abs().max() > 1e-3


def test_outside_its_window_a_rule_costs_nothing(plain: Any) -> None:
    guided = gs.guide(plain, gs.During(gs.CFG(3), progress=(0.25, 0.75)))
    guided("a cat", generator=seeded(1), **GIVEN)
    assert [record.rows for record in guided.report.steps] == [1, 2, 2, 1]
    assert guided.report.evaluations == [6]
    assert [sorted(map(str, record.queries)) for record in guided.report.steps[:2]] == [
        ["positive"],
        ["null", "positive"],
    ]


def test_the_windows_edges_are_noise_levels(plain: Any) -> None:
    guided = gs.guide(plain, gs.CFG(2))
    guided("a cat", generator=seeded(1), **GIVEN)
    sigmas = [record.level.k_sigma for record in guided.report.steps]
    inside = gs.guide(plain, gs.During(gs.CFG(2), sigma=(sigmas[2], sigmas[1])))
    inside("a cat", generator=seeded(1), **GIVEN)
    assert [record.rows for record in inside.report.steps] == [1, 2, 1, 1]  # open below, closed above


def test_max_rows_bounds_every_call(plain: Any) -> None:
    whole = gs.guide(plain, gs.CFG(3))(["a", "b", "c"], generator=seeded(3), **GIVEN).images
    for bound, calls in ((1, 6), (2, 3), (4, 2), (6, 1)):
        guided = gs.guide(plain, gs.CFG(3), max_rows=bound)
        images = guided(["a", "b", "c"], generator=seeded(3), **GIVEN).images
        assert (images - whole).abs().max() < 1e-5 * whole.abs().max()
        assert guided.report.calls == 4 * calls
        assert guided.report.rows == 24


def test_traces_are_one_number_a_sample(plain: Any) -> None:
    guided = gs.guide(plain, gs.CFG(5) | gs.Rescale(0.7))
    guided(["a", "b"], generator=seeded(2), **GIVEN)
    ratios = guided.report.trace("rescale")
    assert [len(step) for step in ratios] == [2] * 4
    assert all(ratio > 0 and ratio != 1 for step in ratios for ratio in step)


def test_the_query_names_of_the_report(plain: Any) -> None:
    guided = gs.guide(plain, gs.CFG(3) | gs.CFG(2, against="null"))
    guided("a", generator=seeded(1), **GIVEN)
    assert guided.report.evaluations == [8]  # no negative given: both contrasts are the empty prompt, evaluated once
    assert set(guided.report.steps[0].queries) == {Query("null"), Query("positive")}
    guided("a", negative_prompt="b", generator=seeded(1), **GIVEN)
    assert guided.report.evaluations == [12]
    guided("a", negative_prompt="", generator=seeded(1), **GIVEN)
    assert guided.report.evaluations == [8]


def state(pipe: Any) -> dict[str, Any]:
    scheduler, unet = pipe.scheduler, pipe.unet
    return {
        "components": {name: id(part) for name, part in pipe.components.items()},
        "types": {name: type(part) for name, part in pipe.components.items()},
        "config": dict(pipe.config),
        "scheduler": (dict(scheduler.config), scheduler.step.__func__, scheduler.scale_model_input.__func__),
        "methods": ("step" in vars(scheduler), "scale_model_input" in vars(scheduler), "forward" in vars(unet)),
        "hooks": (len(unet._forward_hooks), len(unet._forward_pre_hooks)),
        "scale": vars(pipe).get("_guidance_scale"),
        "rescale": vars(pipe).get("_guidance_rescale"),
    }


@pytest.mark.parametrize("fails", [False, True])
def test_the_pipeline_is_left_as_it_was_found(new_pipe: Any, fails: bool, tmp_path: Any) -> None:
    pipe = new_pipe()
    before = state(pipe)
    weights = {name: value.clone() for name, value in pipe.unet.state_dict().items()}

    def fail(pipe: Any, i: int, t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if fails and i == 2:
            raise RuntimeError("on purpose")
        assert type(pipe.unet).__name__ == "UNet2DConditionModel"
        assert isinstance(pipe.unet, before["types"]["unet"])
        return {}

    guided = gs.guide(pipe, gs.CFG(3))
    if fails:
        with pytest.raises(RuntimeError, match="on purpose"):
            guided("a cat", callback_on_step_end=fail, generator=seeded(1), **GIVEN)
        assert guided.report.evaluations == [6]  # the account of what was done
    else:
        guided("a cat", callback_on_step_end=fail, generator=seeded(1), **GIVEN)
    assert state(pipe) == before
    assert all(torch.equal(weights[name], value) for name, value in pipe.unet.state_dict().items())
    pipe.save_pretrained(tmp_path)
    assert (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").exists()
    # A scale that the user's own call had set survives ours.
    pipe("a cat", guidance_scale=3.5, **GIVEN)
    guided("a cat", generator=seeded(1), **GIVEN)
    assert pipe.guidance_scale == 3.5


def test_what_the_stack_decides_cannot_be_given(plain: Any) -> None:
    guided = gs.guide(plain, gs.CFG(3))
    wanted = guided("a", generator=seeded(1), **GIVEN).images
    with pytest.warns(gs.GuidestackWarning, match=r"guidance_scale=5 .* counts is cfg\(3\); .* put cfg\(scale\)"):
        assert torch.equal(guided("a", guidance_scale=5, generator=seeded(1), **GIVEN).images, wanted)
    with pytest.warns(gs.GuidestackWarning, match=r"guidance_rescale=0\.7 .*put rescale\(phi\)"):
        assert torch.equal(guided("a", guidance_rescale=0.7, generator=seeded(1), **GIVEN).images, wanted)
    with pytest.raises(InputError, match="no 'negativ_prompt'; did you mean 'negative_prompt'"):
        guided("a", negativ_prompt="b")


def test_an_adaptive_rule_that_never_guides_is_said(plain: Any) -> None:
    guided = gs.guide(plain, gs.AdaptiveGuidance(gs.CFG(3), threshold=-1))
    with pytest.warns(gs.GuidestackWarning, match="stopped guiding every sample at the first step"):
        guided("a", generator=seeded(1), **GIVEN)
    assert guided.report.evaluations == [5]  # the crossing step is paid


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "cfg(0)",
            r"cfg\(0\) does not turn guidance off: .* of the negative or empty prompt .*; a scale of 1 or stack",
        ),
        ("cfg(0, against='null') | rescale(0.7)", "is that of the empty prompt and not of the prompt"),
        ("apg(0)", r"apg\(0\) does not turn guidance off"),
        ("perpneg(0)", r"perpneg\(0\) .* of the empty prompt"),
        ("icg(0)", r"icg\(0\) .* that of 'independent:tokens'"),
        ("tsg(0)", r"tsg\(0\) .* that of 'positive\+time\(1\)'"),
        ("cfgpp(0)", r"cfgpp\(0\) .*; stack\(\) is without guidance"),
        ("during(cfg(0), sigma=(0.1, inf))", r"cfg\(0\) does not turn"),
        ("adaptive(prefix(cfg(0), 4), threshold=2)", r"cfg\(0\) does not turn"),
    ],
)
def test_a_scale_of_0_is_not_off(plain: Any, text: str, message: str) -> None:
    with pytest.warns(gs.GuidestackWarning, match=message) as said:
        gs.guide(plain, text)("a", generator=seeded(1), **GIVEN)
    assert sum("turn guidance off" in str(one.message) for one in said) == 1


@pytest.mark.parametrize(
    "text", ["cfg(0) | cfg(4, against='null')", "cfg(0.5)", "cfg(1)", "stack()", "tsg(2, strength=0)"]
)
def test_a_sum_in_which_the_prompt_counts_is_not_warned_of(plain: Any, text: str) -> None:
    gs.guide(plain, text)("a", generator=seeded(1), **GIVEN)  # a warning would be an error here


def test_an_unused_negative_prompt_is_said(plain: Any) -> None:
    for stack in (gs.Stack(), gs.CFG(3, against="null")):
        with pytest.warns(gs.GuidestackWarning, match="negative prompt was given, and no rule"):
            gs.guide(plain, stack)("a", negative_prompt="b", generator=seeded(1), **GIVEN)


def test_what_is_no_pipeline_is_refused_as_such(plain: Any) -> None:
    cls = type(plain)
    given = {"None": None, "3": 3, "'bundled'": "bundled", f"<class .*{cls.__name__}": cls, "UNet2D": plain.unet}
    for told, one in given.items():
        for door in (lambda it: gs.guide(it, "cfg(3)"), gs.doctor):
            with pytest.raises(InputError, match=rf"takes a pipeline object of diffusers, .*; got {told}") as caught:
                door(one)
            assert "\n" not in str(caught.value)


def test_what_is_not_supported_is_refused_by_name(new_pipe: Any) -> None:
    from diffusers import VQDiffusionScheduler

    class Unknown:
        def __call__(self) -> None: ...

    with pytest.raises(UnsupportedPipelineError, match=r"no family record for Unknown.*docs/families\.md"):
        gs.guide(Unknown(), gs.CFG(3))
    pipe = new_pipe()
    pipe.scheduler = VQDiffusionScheduler(num_vec_classes=4)
    with pytest.raises(UnsupportedSchedulerError, match="VQDiffusionScheduler"):
        gs.guide(pipe, gs.CFG(3))


def test_a_guidance_distilled_network_has_no_unconditional_branch(new_pipe: Any) -> None:
    pipe = new_pipe(time_cond_proj_dim=8)
    with pytest.raises(UnsupportedPipelineError, match="guidance-distilled"):
        gs.guide(pipe, gs.CFG(3))
    stock = pipe("a", guidance_scale=5.0, generator=seeded(1), **GIVEN).images
    ours = gs.guide(pipe, gs.Stack())("a", guidance_scale=5.0, generator=seeded(1), **GIVEN).images
    assert torch.equal(stock, ours)
    for stack in (gs.TSG(3), gs.ICG(3)):  # these need no unconditional branch
        guided = gs.guide(pipe, stack)
        with pytest.warns(gs.GuidestackWarning, match=r"guidance_scale=7\.5 is embedded, and .* on top"):
            guided("a", generator=seeded(1), **GIVEN)
        assert guided.report.evaluations == [8]


def test_a_second_network_is_refused_before_anything_runs(plain: Any) -> None:
    with pytest.raises(UnsupportedPipelineError, match="asks the network 'weak' for 'positive@weak'"):
        gs.guide(plain, gs.CFG(2, against="positive@weak"))


def test_a_rescale_with_nothing_to_rescale_is_said(plain: Any) -> None:
    with pytest.warns(gs.GuidestackWarning, match="has nothing to work on"):
        gs.guide(plain, gs.Rescale(0.5))("a", generator=seeded(1), **GIVEN)


def test_a_denoiser_that_was_never_intercepted_is_an_error(plain: Any) -> None:
    guided = gs.guide(plain, gs.CFG(3))

    def replace(pipe: Any, i: int, t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        pipe.unet = other
        return {}

    original, other = plain.unet, copy.deepcopy(plain.unet)
    with pytest.raises(GuidanceNotAppliedError, match="4 steps and the denoiser was intercepted 1 times"):
        guided("a", callback_on_step_end=replace, generator=seeded(1), **GIVEN)
    plain.unet = original


def test_rules_that_overflow_are_told_from_a_network_that_does(new_pipe: Any) -> None:
    """What becomes of the other samples is in test_lost.py."""
    pipe = new_pipe().to(torch.float16)
    with pytest.raises(NonFiniteError, match=r"guided estimate of cfg\(1000000\).*smaller scale"):
        gs.guide(pipe, "cfg(1000000)")("a", generator=seeded(1), **GIVEN)


REMEMBERS = (
    "apg(4, momentum=-0.5)",
    "during(apg(4, momentum=-0.5), progress=(0, 1))",
    "adaptive(apg(4, momentum=-0.5), threshold=2)",
    "prefix(apg(4, momentum=-0.5), 4) | rescale(0.7)",
    "schedule(cfg(3), 'g2 r2')",
    "schedule(cfgpp(0.5), 'g s g s')",
    "schedule(apg(4, momentum=0.3), 'g*')",
)
FORGETS = ("stack()", "cfg(3) | rescale(0.7)", "apg(4, radius=2)", "adaptive(cfg(3), threshold=0.99)", "perpneg(3)",
           "tsg(3)", "cfgpp(0.6)", "schedule(cfg(3), 'g2 c2')")  # fmt: skip


def resized(after: int, size: tuple[int, ...]) -> Any:
    """A callback that makes the samples larger, as a two-stage upscaling does."""

    def callback(pipe: Any, i: int, t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        return {"latents": torch.nn.functional.interpolate(tensors["latents"], size)} if i == after else {}

    return callback


@pytest.mark.parametrize("text", REMEMBERS)
def test_samples_that_are_resized_under_a_rule_that_remembers_are_refused(plain: Any, text: str) -> None:
    guided = gs.guide(plain, text)
    told = r"remembers samples of shape \(4, 8, 8\) .* goes on with \(4, 12, 8\)"
    with pytest.raises(GuidanceNotAppliedError, match=told):
        guided(["a", "b"], callback_on_step_end=resized(0, (12, 8)), generator=seeded(2), **GIVEN)
    assert len(guided.report.steps) == 1
    guided(["a", "b"], generator=seeded(2), **GIVEN)  # nothing is left of it


@pytest.mark.parametrize("text", FORGETS)
def test_under_others_they_go_on_in_the_new_size(plain: Any, text: str) -> None:
    guided = gs.guide(plain, text)
    out = guided(["a", "b"], callback_on_step_end=resized(1, (12, 8)), generator=seeded(2), **GIVEN).images
    assert out.shape == (2, 4, 12, 8)
    assert torch.isfinite(out).all()


def test_a_batch_that_changes_is_refused(plain: Any) -> None:
    def drop(pipe: Any, i: int, t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        half = {"latents": tensors["latents"][:1], "prompt_embeds": tensors["prompt_embeds"][[0, 2]]}
        return half if i == 1 else {}

    given = {"callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds"], "callback_on_step_end": drop}
    for text in ("cfg(3)", "apg(4, momentum=-0.5)"):
        with pytest.raises(GuidanceNotAppliedError, match="began with 2 samples and goes on with 1"):
            gs.guide(plain, text)(["a", "b"], generator=seeded(2), **given, **GIVEN)


@pytest.mark.parametrize("name", ["DDIMScheduler", "DDPMScheduler", "LCMScheduler"])
def test_inf_that_the_scheduler_made_is_not_said_to_be_the_networks(plain: Any, name: str) -> None:
    """Zero terminal SNR under a network that predicts noise: x0 is divided by 0 in the first step."""
    options = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "clip_sample": False}
    plain.scheduler = getattr(diffusers, name).from_config(plain.scheduler.config, **options)
    wanted = (
        r"NaN or Inf at step 1 of 4 \(.*\) in what the sampler handed over, before the network was asked; the run "
        r"begins at pure noise .* rescale_betas_zero_snr=False, .* prediction_type='v_prediction'; lost: "
        r"samples \[0, 1\]"
    )
    with pytest.raises(NonFiniteError, match=wanted):
        gs.guide(plain, "cfg(3)")(["a", "b"], generator=seeded(2), **GIVEN)
    with pytest.raises(
        NonFiniteError, match=r"step 0 of 4 .* guided estimate of apg\(3\).*the run begins at pure noise"
    ):
        gs.guide(plain, "apg(3)")("a", generator=seeded(1), **GIVEN)
    plain.scheduler.register_to_config(prediction_type="v_prediction")
    gs.guide(plain, "apg(3)")("a", generator=seeded(1), **GIVEN)


def test_one_pipeline_twice_at_once_is_refused(plain: Any) -> None:
    guided = gs.guide(plain, gs.CFG(3))

    def again(pipe: Any, i: int, t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        with pytest.raises(GuidanceNotAppliedError, match="in the middle of another guided call"):
            guided("a", **GIVEN)
        return {}

    guided("a", callback_on_step_end=again, generator=seeded(1), **GIVEN)
    guided("a", generator=seeded(1), **GIVEN)  # and is free again afterwards


def test_two_threads_with_two_pipelines_do_not_meet(new_pipe: Any) -> None:
    pipes = [new_pipe(), new_pipe()]
    stacks = [gs.CFG(3), gs.CFG(6)]
    alone = [gs.guide(p, s)("a", generator=seeded(1), **GIVEN).images for p, s in zip(pipes, stacks, strict=True)]
    together: list[Any] = [None, None]

    def work(which: int) -> None:
        together[which] = gs.guide(pipes[which], stacks[which])("a", generator=seeded(1), **GIVEN).images

    threads = [threading.Thread(target=work, args=(which,)) for which in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def test_every_form_of_a_stack(plain: Any) -> None:
    wanted = gs.guide(plain, gs.CFG(3))("a", generator=seeded(1), **GIVEN).images
    for form in ("cfg(3)", {"rules": [{"cfg": {"scale": 3}}]}, gs.Stack(gs.CFG(3))):
        assert torch.equal(gs.guide(plain, form)("a", generator=seeded(1), **GIVEN).images, wanted)


def test_embeddings_of_another_batch_are_refused(plain: Any) -> None:
    embeddings, negatives = plain.encode_prompt(["a", "b"], "cpu", 1, True, negative_prompt=["c", "d"])
    guided = gs.guide(plain, gs.CFG(3))
    with pytest.raises(InputError, match="negative_prompt_embeds has 1 rows for 2 prompts"):
        guided(prompt_embeds=embeddings, negative_prompt_embeds=negatives[:1], **GIVEN)
    with pytest.raises(InputError, match="negative_prompt_embeds has 2 rows for 1 prompts"):
        guided("a", negative_prompt_embeds=negatives, **GIVEN)
    given = {"prompt_embeds": embeddings, "negative_prompt_embeds": negatives, "generator": seeded(2)}
    assert len(guided(**given, **GIVEN).images) == 2


def test_another_scheduler_in_the_middle_of_a_call_is_an_error(plain: Any) -> None:
    from diffusers import DDIMScheduler

    def replace(pipe: Any, i: int, t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        other = DDIMScheduler.from_config(pipe.scheduler.config)
        other.set_timesteps(GIVEN["num_inference_steps"])
        pipe.scheduler = other
        return {}

    guided, before = gs.guide(plain, gs.CFG(3)), plain.scheduler
    with pytest.raises(GuidanceNotAppliedError, match="scheduler of StableDiffusionPipeline was replaced"):
        guided("a", callback_on_step_end=replace, generator=seeded(1), **GIVEN)
    assert "step" not in vars(before)
    guided("a", generator=seeded(1), **GIVEN)  # the new one, from the beginning


def test_a_denoiser_that_is_no_module_is_refused(new_pipe: Any) -> None:
    class Proxy:
        def __init__(self, inner: Any) -> None:
            self.inner = inner

        def __getattr__(self, name: str) -> Any:
            return getattr(vars(self)["inner"], name)

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return self.inner(*args, **kwargs)

    pipe = new_pipe()
    guided = gs.guide(pipe, gs.CFG(3))
    inner = pipe.unet
    pipe.unet = Proxy(inner)
    with pytest.raises(UnsupportedPipelineError, match=r"unet of \w+ is Proxy, .* no torch\.nn\.Module"):
        guided("a", **GIVEN)
    pipe.unet = None
    with pytest.raises(UnsupportedPipelineError, match="StableDiffusionPipeline has no component unet"):
        guided("a", **GIVEN)
    pipe.unet = inner
    guided("a", generator=seeded(1), **GIVEN)


@pytest.mark.parametrize("stack", ["during(cfg(3), progress=(0, 0.5)) | rescale(0.5)", "perpneg(3)"])
def test_the_plan_is_what_the_run_asks(pipe: Any, stack: str) -> None:
    pipe.scheduler = diffusers.HeunDiscreteScheduler.from_config(pipe.scheduler.config)
    guided = gs.guide(pipe, stack)
    several = {"negatives": 2, "positives": 1} if "perpneg" in stack else {}
    plan = guided.plan(4, **several)
    options = {"negative_prompt": [["b", "c"]], "extra_prompt": [["d"]]} if several else {}
    guided(["a"], num_inference_steps=4, output_type="latent", **options)
    assert guided.report is not None
    assert [one.when.step for one in plan] == [record.index for record in guided.report.steps]
    assert [len(one.queries) for one in plan] == [len(record.queries) for record in guided.report.steps]
    assert [plan.evaluations] == guided.report.evaluations
