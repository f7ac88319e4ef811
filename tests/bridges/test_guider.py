"""A stack as a guider: tiny Modular pipelines against diffusers' own, and against guide() on the classic ones."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import guidestack as gs
from guidestack.bridges.guider import input_scale
from guidestack.guidance.errors import (
    GuidanceNotAppliedError,
    InputError,
    NonFiniteError,
    StackSyntaxError,
    UnsupportedPipelineError,
)
from guidestack.pipelines.families.record import FAMILIES as RECORDS
from guidestack.pipelines.hooks import hooks_on
from guidestack.samplers import grid
from guidestack.samplers.levels import supported
from guidestack.samplers.stepping import Stepper

from ..spoiling import registered
from .modular import FAMILIES, Pair, pair

RULES = (
    "stack()",
    "cfg(5)",
    "cfg(5) | rescale(0.7)",
    "apg(5, eta=0.2, radius=2, momentum=-0.5)",
    "adaptive(apg(5, momentum=-0.5), threshold=THRESHOLD, space='denoised')",
    "adaptive(cfg(5), threshold=THRESHOLD, space='denoised') | rescale(0.5, space='velocity')",
    "during(cfg(4), progress=(0.3, 0.8))",
    "during(apg(4), sigma=(0.3, 3))",
    "prefix(apg(4), 2)",
    "tsg(3, strength=2)",
    "cfg(2) | apg(3, against='positive+time(1.5)')",
    "cfg(2) | pag(2) | sg(3, shift=30)",
    "cfg(2) | tpg(1) | slg(0.5, 'middle')",
)
THRESHOLDS = {"sdxl": 0.99, "sd3": 0.9, "z_image": 0.9985, "qwen_image": 0.998, "wan": 0.9994}
"""At which some samples of each tiny network stop, and not all at the first step."""


@pytest.fixture(params=FAMILIES)
def both(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """Every pair, with a scheduler that a test may exchange."""
    yield from _kept(pair(request.param))


@pytest.fixture
def sdxl() -> Iterator[Pair]:
    yield from _kept(pair("sdxl"))


def _kept(both: Pair) -> Iterator[Pair]:
    scheduler = both.classic.scheduler
    both.use(copy.deepcopy(scheduler))
    yield both
    both.use(scheduler)


def guider(both: Pair, stack: Any, conditions: Any = None, batch: int = 2) -> Any:
    one = gs.StackGuider(stack, both.modular.scheduler, conditions)
    one.seeds = range(7, 7 + batch)
    return one


@contextmanager
def counted(denoiser: Any) -> Iterator[list[int]]:
    """The rows of each call of the denoiser."""
    rows: list[int] = []

    def note(module: Any, args: Any, kwargs: Any) -> None:
        sample = args[0] if args else kwargs.get("hidden_states", kwargs.get("x"))
        rows.append(len(sample))

    handle = denoiser.register_forward_pre_hook(note, with_kwargs=True)
    yield rows
    handle.remove()


def close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))


# --- against diffusers' own, and against guide() -------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 3])
def test_cfg_is_diffusers_own_to_the_bit(both: Pair, batch: int) -> None:
    from diffusers import ClassifierFreeGuidance

    for scale in (5.0, 0.5):
        with counted(both.denoiser) as theirs:
            wanted = both.run(ClassifierFreeGuidance(guidance_scale=scale), batch)
        one = guider(both, gs.CFG(scale), batch=batch)
        with counted(both.denoiser) as ours:
            got = both.run(one, batch)
        assert torch.equal(got, wanted)
        assert ours == theirs == [batch] * 8
        assert (one.report.evaluations, one.report.calls, one.report.rows) == ([8] * batch, 8, 8 * batch)
    assert not torch.equal(wanted, both.run(guider(both, gs.CFG(0.6), batch=batch), batch))


# diffusers 0.42.1's Wan blocks fail where no negative prompt is to be encoded, whatever the guider.
CASES = [(name, text) for name in FAMILIES for text in RULES if name != "wan" or text not in ("stack()", RULES[9])]


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(("both", "text"), CASES, indirect=["both"])
def test_the_same_as_guide(both: Pair, text: str, batch: int) -> None:
    text = text.replace("THRESHOLD", str(THRESHOLDS[both.name]))
    one = guider(both, text, batch=batch)
    if both.name == "z_image" and "time" in str(one.stack.asks()):
        with pytest.raises(UnsupportedPipelineError, match="the time embedding of ZImage"):
            both.run(one, batch)
        return
    with counted(both.denoiser) as rows:
        got = both.run(one, batch)
    own = " | renorm()" if both.name == "qwen_image" else ""  # which the loop of Qwen does by itself
    own = "" if text == "stack()" else own
    contrast = any(query.condition != "positive" for query in one.stack.asks())
    wanted, report = both.guided(text + own, batch, negative=contrast)
    assert close(got, wanted)
    assert (one.report.calls, one.report.rows) == (len(rows), sum(rows))
    assert [step.index for step in one.report.steps] == [step.index for step in report.steps]
    for ours, theirs in zip(one.report.steps, report.steps, strict=True):
        # The loop cannot leave samples out: a condition is evaluated for all, or for none.
        assert {str(q).replace("negative", "null") for q in ours.queries} == {
            str(q).replace("negative", "null") for q, samples in theirs.queries.items() if samples
        }
        assert ours.level == theirs.level
    for name in ("guiding", "cosine", "apg_clip"):
        ours, theirs = torch.tensor(one.report.trace(name)), torch.tensor(report.trace(name))
        assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-4, equal_nan=True)


def test_the_rules_of_the_table_do_something(sdxl: Pair) -> None:
    latents = [sdxl.run(guider(sdxl, text.replace("THRESHOLD", "0.99"))) for text in RULES]
    for i, a in enumerate(latents):
        assert not any(close(a, b) for b in latents[:i]), RULES[i]


def test_samples_stop_one_by_one_and_calls_are_saved(sdxl: Pair) -> None:
    stack = gs.AdaptiveGuidance(gs.CFG(5), threshold=0.99, space="denoised")
    one = guider(sdxl, stack, batch=3)
    with counted(sdxl.denoiser) as rows:
        sdxl.run(one, 3)
    guiding = torch.tensor(one.report.trace("guiding"))
    first = [int(column.tolist().index(0)) if 0 in column else len(guiding) for column in guiding.T]
    assert len(set(first)) > 1
    assert 1 < len(rows) - 4 < 4  # asked for while any sample wants it, and no longer
    assert one.report.evaluations == [len(rows)] * 3


@pytest.mark.parametrize("name", ["HeunDiscreteScheduler", "DDIMScheduler", "DPMSolverMultistepScheduler"])
@pytest.mark.parametrize("emits", ["epsilon", "v_prediction"])
def test_other_schedulers(sdxl: Pair, name: str, emits: str) -> None:
    import diffusers

    sdxl.use(getattr(diffusers, name).from_config(sdxl.classic.scheduler.config, prediction_type=emits))
    for text in (
        "apg(5, eta=0.2, momentum=-0.5)",
        "adaptive(cfg(5), threshold=0.9999, space='denoised')",
    ):
        one = guider(sdxl, text)
        got = sdxl.run(one)
        wanted, report = sdxl.guided(text)
        assert close(got, wanted)
        places = [(step.index, step.evaluation) for step in one.report.steps]
        assert places == [(step.index, step.evaluation) for step in report.steps]
        assert (name == "HeunDiscreteScheduler") == any(evaluation for _, evaluation in places)


def test_a_window_by_step_takes_both_evaluations_or_none(sdxl: Pair) -> None:
    from diffusers import HeunDiscreteScheduler

    sdxl.use(HeunDiscreteScheduler.from_config(sdxl.classic.scheduler.config))
    sdxl.modular.scheduler.set_timesteps(4)
    second, third = [point.level.sigma for point in grid(sdxl.modular.scheduler).points if not point.evaluation][1:3]
    text = f"during(cfg(5), sigma=({(second + third) / 2}, inf), per_step=True)"
    one = guider(sdxl, text)
    got = sdxl.run(one)
    assert [len(step.queries) for step in one.report.steps] == [2, 2, 2, 2, 1, 1, 1]
    assert close(got, sdxl.guided(text)[0])


def test_a_sample_that_is_nan_is_warned_of_and_the_others_go_on(both: Pair) -> None:
    """The loop hands its samples on by itself: an error would lose all of them."""
    wanted = both.run(guider(both, "cfg(5)", batch=3), 3)
    with registered():
        one = guider(both, "cfg(5) | spoil(8, start=1)", batch=3)
        with pytest.warns(gs.GuidestackWarning, match=r"NaN or Inf at step 1 .*lost: samples \[1\]; the other") as said:
            found = both.run(one, 3)
        assert len([one for one in said if one.category is gs.GuidestackWarning]) == 1  # numpy may warn of a picture
        assert torch.equal(found[[0, 2]], wanted[[0, 2]])
        everyone = guider(both, " | ".join(["cfg(5)", *(f"spoil({seed})" for seed in (7, 8, 9))]), batch=3)
        with pytest.raises(NonFiniteError, match=r"samples \[0, 1, 2\]"):
            both.run(everyone, 3)


def test_image_to_image_begins_in_the_middle(sdxl: Pair) -> None:
    from diffusers import StableDiffusionXLImg2ImgPipeline

    classic = StableDiffusionXLImg2ImgPipeline(**sdxl.classic.components, add_watermarker=False)
    classic.set_progress_bar_config(disable=True)
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    more = {"image": image, "strength": 0.5, "num_inference_steps": 8}
    text = "during(apg(5, momentum=-0.5), progress=(0.6, 1))"
    one = guider(sdxl, text, batch=1)
    sdxl.modular.update_components(guider=one)
    call = sdxl.call(1, True, {**more, "output_type": "pt"})
    got = sdxl.modular(**call).get("latents")
    guided = gs.guide(classic, text)
    call = sdxl.call(1, True, {**more, "output_type": "latent"})
    wanted = guided(**{name: value for name, value in call.items() if name not in sdxl.given})[0]
    assert [step.index for step in one.report.steps] == [4, 5, 6, 7]
    assert one.report.evaluations == guided.report.evaluations == [7]
    assert close(got, wanted)


# --- conditions beside the loop's two ------------------------------------------------------------------------------


def fields_of(both: Pair, text: str, as_prompt: bool = False) -> dict[str, Tensor]:
    """What SDXL's loop calls the embeddings of a text."""
    family = RECORDS["StableDiffusionXLPipeline"]
    assert family.encode is not None
    embeddings, pooled = family.encode(both.classic, {}, [text], as_prompt).values()
    return {"prompt_embeds": embeddings, "text_embeds": pooled}


def zeros(both: Pair) -> dict[str, Tensor]:
    """SDXL's empty condition."""
    return {name: torch.zeros_like(value) for name, value in fields_of(both, "").items()}


@pytest.mark.parametrize("batch", [1, 3])
def test_perp_neg(sdxl: Pair, batch: int) -> None:
    conditions = {"null": zeros(sdxl)}
    one = guider(sdxl, "perpneg(5)", conditions, batch)
    got = sdxl.run(one, batch)
    wanted, report = sdxl.guided("perpneg(5)", batch)
    assert close(got, wanted)
    assert one.report.evaluations == report.evaluations == [12] * batch
    assert one.report.calls == 12

    conditions |= {"negative:1": fields_of(sdxl, "red"), "positive:1": fields_of(sdxl, "sky", True)}
    stack = "adaptive(perpneg(5, weights=(1, 0.5)), threshold=0.999, space='denoised') | rescale(0.5)"
    one = guider(sdxl, stack, conditions, batch)
    call = sdxl.call(batch, True, {})
    negatives = [[one, "red"] for one in call["negative_prompt"]]
    wanted, report = sdxl.guided(stack, batch, negative_prompt=negatives, extra_prompt=[["sky"]] * batch)
    assert close(sdxl.run(one, batch), wanted)
    assert max(one.report.evaluations) == max(report.evaluations)


def test_icg_and_the_true_empty_prompt(sdxl: Pair) -> None:
    random = RECORDS["StableDiffusionXLPipeline"].random["tokens"]
    rows = RECORDS["StableDiffusionXLPipeline"].encode(sdxl.classic, {}, ["a cat", "red"], True)  # type: ignore[misc]

    def draw(generators: Any) -> dict[str, Tensor]:
        embeddings, pooled = random(sdxl.classic, rows, generators).values()
        return {"prompt_embeds": embeddings, "text_embeds": pooled}

    one = guider(sdxl, "icg(3)", {"independent:tokens": draw})
    wanted, report = sdxl.guided("icg(3)", negative=False)
    assert close(sdxl.run(one, negative=False), wanted)
    assert one.report.evaluations == report.evaluations == [8, 8]

    stack = "cfg(3, against='null')"
    one = guider(sdxl, stack, {"null": zeros(sdxl)})
    got = sdxl.run(one)
    with pytest.warns(gs.GuidestackWarning, match="a negative prompt was given, and no rule"):
        wanted, _ = sdxl.guided(stack)
    assert close(got, wanted)


def test_lists_of_embeddings(capfd: pytest.CaptureFixture[str]) -> None:
    """Z-Image's loop has a list of embeddings of different lengths."""
    both = pair("z_image")
    empty, _ = both.classic.encode_prompt("", do_classifier_free_guidance=False, max_sequence_length=32)
    one = guider(both, "cfg(3, against='null')", {"null": {"cap_feats": empty}})
    got = both.run(one, negative=False)
    wanted, _ = both.guided("cfg(3)", negative=False)
    assert close(got, wanted)
    one.conditions = {"null": {"cap_feats": [*empty, *empty, *empty]}}
    with pytest.raises(InputError, match=r"conditions\['null'\]\['cap_feats'\] has 3 rows for 2 samples"):
        both.run(one)


# --- what a run leaves, and does not ------------------------------------------------------------------------------


def test_a_run_begins_with_nothing_of_the_one_before(sdxl: Pair) -> None:
    one = guider(sdxl, "apg(5, momentum=-0.5)")
    first = sdxl.run(one)
    assert torch.equal(sdxl.run(one), first)
    assert len(one.report.steps) == 4
    three = sdxl.run(one, num_inference_steps=3)
    assert torch.equal(sdxl.run(guider(sdxl, "apg(5, momentum=-0.5)"), num_inference_steps=3), three)
    assert one.report.evaluations == [6, 6]
    one.seeds = None
    assert sdxl.run(one, 1).shape[0] == 1


def test_a_run_that_breaks_off_leaves_everything_clean(sdxl: Pair) -> None:
    denoiser = sdxl.denoiser
    one = guider(sdxl, "during(apg(5, momentum=-0.5), progress=(0, 0.5))")
    wanted = sdxl.run(one)
    assert not hooks_on(denoiser)
    calls = 0

    def fail(module: Any, args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 6:
            raise KeyboardInterrupt

    handle = denoiser.register_forward_pre_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        sdxl.run(one)
    handle.remove()
    assert not hooks_on(denoiser)
    assert not denoiser._forward_hooks
    assert one.num_conditions == 2  # an encoder asks before the next run begins
    assert torch.equal(sdxl.run(one), wanted)
    gs.guide(sdxl.classic, "cfg(3)")(**sdxl.call(1, False, {"output_type": "latent"}))  # the denoiser is free


def test_a_loop_that_fails_before_it_calls_the_denoiser(sdxl: Pair) -> None:
    sdxl.modular.scheduler.set_timesteps(2)
    one, module = guider(sdxl, "cfg(3)"), torch.nn.Identity()
    for anew in (False, True):
        one.set_state(step=0, num_inference_steps=2, timestep=sdxl.modular.scheduler.timesteps[0])
        one.prepare_inputs({"prompt_embeds": (torch.ones(2, 3), torch.zeros(2, 3))})
        one.prepare_models(module)
        assert len(hooks_on(module)) == 1
        if anew:
            one.prepare_models(module)
            assert len(hooks_on(module)) == 1
        else:
            one.reset()
            assert not hooks_on(module)
    module(torch.ones(2, 3))
    assert not hooks_on(module)


@pytest.mark.parametrize("more", [(2, 7, 4), (2, 4, 4, 1)], ids=["in further tokens", "one frame"])
def test_samples_are_found_in_what_the_denoiser_is_handed(sdxl: Pair, more: tuple[int, ...]) -> None:
    """Of pictures to go by, or frames, with them: the same estimate as without."""
    scheduler = sdxl.modular.scheduler
    scheduler.set_timesteps(2)
    x = torch.arange(32.0).sin().reshape(2, 4, 4)
    handed = torch.zeros(more)
    handed[:, :4] = x if len(more) == 3 else x.unsqueeze(3)
    estimates = []
    for samples in (x, handed if len(more) == 3 else list(handed.movedim(3, 2))):
        one = guider(sdxl, "apg(5)")
        one.set_state(step=0, num_inference_steps=2, timestep=scheduler.timesteps[0])
        batches = one.prepare_inputs({"prompt_embeds": (torch.ones(2, 3), torch.zeros(2, 3))})
        for place, batch in enumerate(batches):
            one.prepare_models(module := torch.nn.Identity())
            module(samples)
            one.cleanup_models(module)
            batch.noise_pred = (torch.arange(32.0) * (place + 1)).cos().reshape(2, 4, 4)
        estimates.append(one(batches).pred)
    assert torch.equal(*estimates)


def test_num_conditions_follow_the_step(sdxl: Pair) -> None:
    one = guider(sdxl, "during(cfg(5), progress=(0.5, 1))")
    sdxl.modular.scheduler.set_timesteps(4)
    assert one.num_conditions == 2
    seen = []
    data = {"prompt_embeds": (torch.ones(2, 3), torch.zeros(2, 3))}
    for step, timestep in enumerate(sdxl.modular.scheduler.timesteps):
        one.set_state(step=step, num_inference_steps=4, timestep=timestep)
        batches = one.prepare_inputs(data)
        seen.append((one.num_conditions, [batch.__guidance_identifier__ for batch in batches]))
        for batch in batches:
            one.prepare_models(module := torch.nn.Linear(3, 3))
            batch.noise_pred = module(torch.ones(2, 3))
            assert one.is_conditional == (batch.__guidance_identifier__ == "pred_cond")
            assert one.is_unconditional != one.is_conditional
            one.cleanup_models(module)
        one(batches)
    assert seen == [(1, ["pred_cond"])] * 2 + [(2, ["pred_cond", "pred_uncond"])] * 2
    assert one.num_conditions == 2
    assert "num_conditions: 2" in repr(one)
    one.disable()
    assert one.num_conditions == 1
    for text, count in (("cfg(1)", 1), ("perpneg(3)", 3), ("cfg(3, against='null')", 2), ("stack()", 1)):
        assert gs.StackGuider(text).num_conditions == count


def test_a_second_guider_begins_where_the_first_ends(sdxl: Pair) -> None:
    """Wan 2.2 has one for each of its two networks, both told the step of the whole run."""
    scheduler = sdxl.modular.scheduler
    scheduler.set_timesteps(6)
    one = guider(sdxl, "apg(5, momentum=-0.5)")
    data = {"prompt_embeds": (torch.ones(2, 3), torch.zeros(2, 3))}

    def steps(begin: int) -> list[Tensor]:
        found = []
        for step in range(begin, 6):
            one.set_state(step=step, num_inference_steps=6, timestep=scheduler.timesteps[step])
            batches = one.prepare_inputs(data)
            for batch in batches:
                one.prepare_models(module := torch.nn.Identity())
                module(torch.ones(2, 3))
                batch.noise_pred = batch.prompt_embeds * torch.tensor([1.0, 2.0, 3.0]) + 0.1 * step
                one.cleanup_models(module)
            found.append(one(batches).pred)
        return found

    first = steps(3)
    assert [step.index for step in one.report.steps] == [3, 4, 5]
    assert all(torch.equal(a, b) for a, b in zip(steps(3), first, strict=True))
    one.reset()
    assert one.report is None
    assert all(torch.equal(a, b) for a, b in zip(steps(3), first, strict=True))


def test_disabled() -> None:
    # Not SDXL's: its loop enables the guider that it is given.
    both = pair("sd3")
    one = guider(both, "cfg(5)")
    one.disable()
    plain = both.run(guider(both, "stack()"))
    assert torch.equal(both.run(one), plain)
    assert one.report.calls == 4
    one.enable()
    assert not torch.equal(both.run(one), plain)
    assert one.report.calls == 8
    assert torch.equal(both.run(gs.StackGuider("cfg(5)", both.modular.scheduler, enabled=False)), plain)


def test_a_threshold_at_which_all_stop_at_once_is_said(sdxl: Pair) -> None:
    one = guider(sdxl, gs.AdaptiveGuidance(gs.CFG(5), threshold=0.5))
    with pytest.warns(gs.GuidestackWarning, match="stopped guiding every sample at the first step"):
        sdxl.run(one)
    with pytest.warns(gs.GuidestackWarning, match="has nothing to work on"):
        gs.StackGuider("rescale(0.5)")


# --- saved and loaded ----------------------------------------------------------------------------------------------


def test_saved_and_loaded_by_diffusers(sdxl: Pair, tmp_path: Path) -> None:
    stack = gs.AdaptiveGuidance(gs.APG(5, momentum=-0.5), threshold=0.99, space="denoised") | gs.Rescale(0.5)
    one = guider(sdxl, stack)
    one.save_pretrained(tmp_path / "guider")
    config = json.loads((tmp_path / "guider" / "guider_config.json").read_text())
    assert config["_class_name"] == "StackGuider"
    assert config["stack"] == str(stack)
    assert set(config) == {"_class_name", "_diffusers_version", "stack", "enabled"}
    loaded = gs.StackGuider.from_pretrained(tmp_path / "guider")
    assert loaded.stack == stack
    assert loaded.scheduler is None
    loaded.scheduler = sdxl.modular.scheduler
    assert torch.equal(sdxl.run(loaded), sdxl.run(one))
    again = one.new()
    assert again is not one
    assert (again.stack, again.scheduler) == (one.stack, one.scheduler)
    assert again.new(stack="cfg(3)").stack == gs.Stack(gs.CFG(3))
    assert gs.StackGuider.from_config(one.config).stack == stack


def test_a_pipeline_loads_it(sdxl: Pair, tmp_path: Path) -> None:
    """By the name of its library and class, as a pipeline's index has it: of what was loaded itself."""
    from diffusers.modular_pipelines import ComponentSpec, ModularPipeline

    stack = gs.parse("cfg(5) | rescale(0.5)")
    gs.StackGuider(stack).save_pretrained(tmp_path / "guider")
    spec = ComponentSpec(
        name="guider",
        type_hint=gs.StackGuider,
        pretrained_model_name_or_path=str(tmp_path / "guider"),
        default_creation_method="from_pretrained",
    )
    sdxl.modular.update_components(guider=spec.load())
    sdxl.modular.save_pretrained(str(tmp_path / "modular"), overwrite_modular_index=True)
    index = json.loads((tmp_path / "modular" / "modular_model_index.json").read_text())
    assert index["guider"][:2] == ["guidestack", "StackGuider"]
    loaded = ModularPipeline.from_pretrained(str(tmp_path / "modular"), local_files_only=True)
    loaded.load_components("guider")
    assert isinstance(loaded.guider, gs.StackGuider)
    assert loaded.guider.stack == stack


def test_a_bad_file_is_refused(tmp_path: Path) -> None:
    gs.StackGuider("cfg(3)").save_pretrained(tmp_path)
    path = tmp_path / "guider_config.json"
    path.write_text(path.read_text().replace("cfg(3)", "__import__('os')"))
    with pytest.raises(StackSyntaxError, match="unknown rule '__import__'"):
        gs.StackGuider.from_pretrained(tmp_path)


# --- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("cfgpp(0.6)", r"cfgpp\(0.6\) re-noises with a second prediction"),
        ("cfg(3) | renoise()", r"renoise\(\) re-noises"),
        ("adaptive(cfgpp(0.6), threshold=0.9)", r"cfgpp\(0.6\) re-noises"),
        ("linear_ag(cfg(4), 'emoji-cfg4-20')", "is for runs without a negative prompt"),
        ("cfg(3, against='positive@weak')", "asks the network 'weak'"),
        ("cfg(3, against='positive+grad')", "asks for gradients"),
    ],
)
def test_what_it_cannot_carry_is_said_at_once(text: str, reason: str) -> None:
    with pytest.raises(
        InputError, match=f"a guider cannot carry .*: {reason}|a guider cannot carry .*{reason}"
    ) as caught:
        gs.StackGuider(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("conditions", "reason"),
    [
        ({"positive": {}}, "'positive' is the loop's own"),
        ({"negative:0": {}}, "'negative:0' is the loop's own"),
        ({"null": torch.ones(1)}, r"conditions\['null'\] must be a mapping of embeddings, got Tensor"),
        ({"null": len}, "a condition that is drawn is called 'independent:SOURCE'"),
        ({"independent:tokens": {}}, "a condition that is drawn is called 'independent:SOURCE'"),
        ({"negative:2": {}}, "conditions have 1 negative ones beside the first, and no negative:1"),
    ],
)
def test_bad_conditions(conditions: Any, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        gs.StackGuider("perpneg(3)", conditions=conditions)


def test_what_is_missing_is_said_before_the_denoiser_runs(sdxl: Pair) -> None:
    with counted(sdxl.denoiser) as rows:
        with pytest.raises(InputError, match=r"no scheduler to read .* set guider.scheduler = pipe.scheduler"):
            sdxl.run(gs.StackGuider("cfg(3)"))
        with pytest.raises(InputError, match=r"asks for 'null', which the loop does not have.*guider.conditions"):
            sdxl.run(guider(sdxl, "perpneg(3)"))
        with pytest.raises(
            InputError, match=r"asks for 'negative:1'.*add it to guider.conditions as .*\(given: null\)"
        ):
            sdxl.run(guider(sdxl, "cfg(3, against='negative:1')", {"null": fields_of(sdxl, "")}))
        wrong = {"null": {"promt_embeds": torch.ones(1, 3)}}
        with pytest.raises(InputError, match="the loop has no field 'promt_embeds'; did you mean 'prompt_embeds'"):
            sdxl.run(guider(sdxl, "perpneg(3)", wrong))
        one = guider(sdxl, "cfg(3)", batch=3)
        with pytest.raises(InputError, match="seeds has 3 entries for 2 samples"):
            sdxl.run(one)
        embeddings = fields_of(sdxl, "a cat", True)
        one = guider(sdxl, "cfg(3)", batch=1)
        one.set_state(step=0, num_inference_steps=4, timestep=sdxl.modular.scheduler.timesteps[0])
        for data in ({"prompt_embeds": (embeddings["prompt_embeds"], None)}, embeddings):
            with pytest.raises(InputError, match="asks for an unconditional branch, and the pipeline prepared none"):
                one.prepare_inputs(data)
    assert rows == []


def test_another_scheduler_than_the_loops(sdxl: Pair) -> None:
    from diffusers import EulerDiscreteScheduler

    other = EulerDiscreteScheduler(timestep_spacing="trailing")
    other.set_timesteps(2)
    with pytest.raises(gs.GuidestackError, match="is not on the scheduler's schedule"):
        sdxl.run(gs.StackGuider("cfg(3)", other), num_inference_steps=7)


def test_a_loop_that_does_otherwise_than_it_says(sdxl: Pair) -> None:
    scheduler = sdxl.modular.scheduler
    scheduler.set_timesteps(2)
    module = torch.nn.Identity()
    one = guider(sdxl, "cfg(3)")
    data = {"prompt_embeds": (torch.ones(2, 3), torch.zeros(2, 3))}

    def elsewhere(module: Any) -> None:
        assert torch.equal(module(torch.ones(3)), torch.ones(3))  # somebody else's question is not the loop's
        assert len(hooks_on(module)) == 1

    def begin(step: int) -> Any:
        one.set_state(step=step, num_inference_steps=2, timestep=scheduler.timesteps[min(step, 1)])
        return one.prepare_inputs(data)

    begin(0)
    one.prepare_models(module)
    with pytest.raises(GuidanceNotAppliedError, match="the loop did not call the Identity that it announced"):
        one.cleanup_models(module)
    assert not hooks_on(module)
    batches = begin(0)
    for batch in batches:
        one.prepare_models(module)
        elsewhere(module)
        batch.noise_pred = module(torch.ones(2, 4, 5))[:, :, :2]
        one.cleanup_models(module)
    with pytest.raises(
        GuidanceNotAppliedError, match=r"handed \(2, 4, 5\) and the loop makes \(2, 4, 2\) of its answer"
    ):
        one(batches)
    one.reset()
    for step in range(2):
        for batch in (batches := begin(step)):
            one.prepare_models(module)
            batch.noise_pred = module(torch.ones(2, 3))
            one.cleanup_models(module)
        one(batches)
    with pytest.raises(GuidanceNotAppliedError, match="the loop is at step 2 of 2 and the scheduler's schedule has 2"):
        begin(2)


# --- levels --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", supported())
def test_samples_are_scaled_back(name: str) -> None:
    import diffusers

    scheduler = getattr(diffusers, name)()
    scheduler.set_timesteps(5)
    x, advance = torch.ones(1, 2, 2, 2), Stepper(scheduler)
    for point, timestep in zip(grid(scheduler).points, scheduler.timesteps, strict=True):
        scaled = scheduler.scale_model_input(x, timestep) if hasattr(scheduler, "scale_model_input") else x
        assert torch.allclose(scaled, input_scale(scheduler, point.level) * x, rtol=1e-5)
        advance(0.1 * x, timestep, x)
