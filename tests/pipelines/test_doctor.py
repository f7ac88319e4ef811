"""doctor(): every family passes, and what is broken on purpose is diagnosed by name."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import re
import types
from collections.abc import Callable, Iterator
from dataclasses import FrozenInstanceError, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import guidestack as gs
from guidestack.guidance.errors import InputError
from guidestack.guidance.notation import registry
from guidestack.guidance.report import Report
from guidestack.pipelines.doctor import trials
from guidestack.pipelines.doctor.checks import CHECKS
from guidestack.pipelines.doctor.state import differences, state
from guidestack.pipelines.families.record import FAMILIES, Family
from guidestack.pipelines.families.suggest import nearest_records

from ..conftest import make_dit, make_unconditional
from .tiny import PIPELINES, load

guiding: Any = importlib.import_module("guidestack.pipelines.guide")
GIVEN: dict[str, dict[str, Any]] = {
    # Their tiny encoders are too small for the defaults, or do not say them.
    "AudioLDM2Pipeline": {"max_new_tokens": 8},
    "Flux2KleinPipeline": {"text_encoder_out_layers": (1, 2)},
    "HiDreamImagePipeline": {"max_sequence_length": 16},
    "Lumina2Pipeline": {"max_sequence_length": 32, "system_prompt": "draw"},
    "SanaPipeline": {"complex_human_instruction": ["Improve this:"], "max_sequence_length": 16},
}
NOT_MADE = {
    "StableDiffusion3ControlNetPipeline": ["halves"],  # its residuals are for both halves together
    "LTXImageToVideoPipeline": ["sign"],  # the first frame is taken out, and the rest unpacked
}
EMOJI_CALL = {"prompt": ["a cat"], "negative_prompt": ["red"], "output_type": "latent"}
NEARLY = [name for name in PIPELINES if re.match("Kandinsky|ZImage|.*InstructPix2Pix", name)]
# One of each way to call the denoiser, and all that is not to the bit or not made; the others are of these kinds.
QUICK = {
    "StableDiffusionPipeline",
    "StableDiffusionControlNetPipeline",
    "StableDiffusion3ControlNetPipeline",
    "StableDiffusionInstructPix2PixPipeline",
    "FluxPipeline",
    "LTXImageToVideoPipeline",
    "StableAudioPipeline",
    "WanPipeline, two transformers",
    "ZImagePipeline",
}
KNOWN = [name for name in PIPELINES if name.partition(",")[0] in FAMILIES]
# From pictures, and as variants, they are called as the text-to-image pipeline is; test_families.py has them all.
DIAGNOSED = [name for name in KNOWN if name in QUICK or not re.search("Img2Img|Inpaint|VideoTo|ToVideo|,", name)]


@cache
def made(name: str) -> Any:
    return load(name).make()


def not_made(diagnosis: Any) -> list[str]:
    return [check.name for check in diagnosis.checks if check.outcome == "not made"]


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n not in QUICK)) for n in DIAGNOSED])
def test_every_family_passes(name: str) -> None:
    pipe, builder = made(name), load(name)
    pipe(**builder.arguments(1, True))  # some text encoders put hooks of their own on themselves at their first call
    before, numbers = state(pipe), torch.random.get_rng_state()
    diagnosis = gs.doctor(pipe, GIVEN.get(name), rules=False)
    assert diagnosis.ok, str(diagnosis)
    assert not_made(diagnosis) == NOT_MADE.get(name, [])
    assert diagnosis["cfg"].reason.endswith("to the bit" if name not in NEARLY else "to rounding")
    assert [check.name for check in diagnosis.checks] == ["record", "components", "inputs", *CHECKS]
    assert "samples of 2 x" in diagnosis.example
    assert ", 2 steps of" in diagnosis.example
    assert differences(before, state(pipe)) == []
    assert torch.equal(numbers, torch.random.get_rng_state())


def test_class_conditional_and_unconditional_models() -> None:
    diagnosis = gs.doctor(make_dit())
    assert diagnosis.ok
    assert not_made(diagnosis) == ["prompts"]
    ran = {trial.rule for trial in diagnosis.trials if trial.evaluations is not None}
    assert "icg(3, source='class')" in ran
    assert "perpneg(3)" not in ran
    for name in ("DDPMPipeline", "DDIMPipeline"):
        diagnosis = gs.doctor(make_unconditional(name))
        assert diagnosis.ok
        assert not_made(diagnosis) == ["halves", "cfg", "prompts"]
        assert diagnosis["cfg"].reason == "it is unconditional; tsg(scale) or pag(scale) guides such a model"
        ran = {trial.rule for trial in diagnosis.trials if trial.evaluations is not None}
        assert {"tsg(3, strength=0.8)", "pag(3)"} <= ran
        assert not {"cfg(3)", "icg(3, source='class')", "perpneg(3)"} & ran
        (fitted,) = (trial for trial in diagnosis.trials if trial.rule == "linear_ag")
        assert fitted.reason.startswith(
            "it estimates an unconditional prediction, of which there is none: it is uncond"
        )


@pytest.mark.slow
def test_models_distilled_from_guided_runs(new_pipe: Callable[..., Any]) -> None:
    consistency = new_pipe(time_cond_proj_dim=8)  # it takes the scale as an input, and has no empty prompt
    klein = load("Flux2KleinPipeline").make()
    klein.register_to_config(is_distilled=True)
    for pipe, name, reason in (
        (consistency, "", "takes the guidance scale as an input (guidance-distilled) and has no unconditional branch"),
        (klein, "Flux2KleinPipeline", "was distilled from guided runs (is_distilled)"),
    ):
        diagnosis = gs.doctor(pipe, GIVEN.get(name))
        assert diagnosis.ok, str(diagnosis)
        assert not_made(diagnosis) == ["halves", "cfg", "prompts"]
        assert reason in diagnosis["cfg"].reason
        assert reason in str(diagnosis.notes)
        ran = {trial.rule for trial in diagnosis.trials if trial.evaluations is not None}
        assert {"tsg(3, strength=0.8)", "pag(3)"} <= ran
        assert not any(rule.startswith(("cfg(3)", "perpneg")) for rule in ran)
    # Where there is an empty prompt all the same, rules guide on top of the distilled scale.
    diagnosis = gs.doctor(made("FluxPipeline, distilled"), rules=False)
    assert diagnosis["cfg"].outcome == "pass"
    assert "takes their scale as an input, guidance_scale, which stays yours" in str(diagnosis)


def test_an_unknown_scheduler_is_named(pipe: Any) -> None:
    class Unknown(type(pipe.scheduler)):  # type: ignore[misc]
        def step(self, *args: Any, **kwargs: Any) -> Any:
            return super().step(*args, **kwargs)

    pipe.scheduler = Unknown.from_config(pipe.scheduler.config)
    diagnosis = gs.doctor(pipe)
    assert diagnosis.failed == ("components",)
    assert diagnosis["components"].reason.startswith("the levels of Unknown are not known")
    assert "(all:" not in diagnosis["components"].reason
    assert not_made(diagnosis) == ["inputs", *CHECKS, "rules"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "steps"),
    [
        ("HeunDiscreteScheduler", {}, 3),  # two evaluations in the first of two steps
        ("KDPM2AncestralDiscreteScheduler", {}, 3),
        ("PNDMScheduler", {"skip_prk_steps": True}, 3),
        ("PNDMScheduler", {}, 13),  # it makes no runs of two steps
        ("EulerAncestralDiscreteScheduler", {}, 2),
    ],
)
def test_schedulers_that_evaluate_more_often(pipe: Any, name: str, options: dict[str, Any], steps: int) -> None:
    import diffusers

    pipe.scheduler = getattr(diffusers, name)(**options)
    diagnosis = gs.doctor(pipe, rules=False)
    assert diagnosis.ok, str(diagnosis)
    assert f", {steps} steps of {name}" in diagnosis.example


# --- the table of rules --------------------------------------------------------------------------------------------


def test_every_rule_of_the_registry_is_in_the_table(pipe: Any) -> None:
    diagnosis = gs.doctor(pipe)
    assert diagnosis.ok
    assert not not_made(diagnosis)
    table = {trial.rule: trial for trial in diagnosis.trials}
    for entry in registry.rules():
        assert any(entry.name in rule for rule in table), entry.name
    assert table["cfg(3)"].evaluations == 2
    assert table["perpneg(3)"].evaluations == 3
    assert table["icg(3, source='class')"].reason == (
        "it has no random condition from source='class'; it has 'tokens', 'gaussian'"
    )
    assert "needs coefficients" in table["linear_ag"].reason
    lines = str(diagnosis).splitlines()
    assert lines[-1] == "17 of 17 checks hold"
    assert [line for line in lines if line.startswith("perpneg(3) ") and line.endswith(" 3")]


def test_a_rule_of_others_is_tried_as_well(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Mine(gs.Rescale):
        pass

    entries = registry._ENTRIES
    monkeypatch.setitem(entries, "mine", replace(entries["rescale"], name="mine", rule=Mine, examples=()))
    tried = {one.rule: one for one in trials.trials(pipe, FAMILIES["StableDiffusionPipeline"], dict)}
    assert re.match(r"was not tried: .*mine needs 'phi'", tried["mine()"].reason)


def test_a_rule_that_breaks_the_pipeline_is_a_failure(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def tokens(pipe: Any, rows: Any, generators: Any) -> Any:
        raise ValueError("no such tokens")

    broken(monkeypatch, random={"tokens": tokens})
    diagnosis = gs.doctor(pipe)
    assert diagnosis.failed == ("rules",)
    assert diagnosis["rules"].reason == "icg(3): see the table"
    assert "breaks: ValueError: no such tokens" in str(diagnosis)


# --- wrong records -------------------------------------------------------------------------------------------------


def broken(monkeypatch: pytest.MonkeyPatch, name: str = "StableDiffusionPipeline", **changes: Any) -> None:
    monkeypatch.setitem(FAMILIES, name, replace(FAMILIES[name], **changes))


def _wrong_encode(pipe: Any, call: Any, texts: Any, as_prompt: bool) -> Any:
    assert FAMILIES["StableDiffusionPipeline"].encode is not None
    return _ENCODE(pipe, call, ["something else" for _ in texts], as_prompt)


_ENCODE: Any = FAMILIES["StableDiffusionPipeline"].encode


@pytest.mark.parametrize(
    ("changes", "failed", "reason"),
    [
        ({"halves": ("positive", "negative")}, {"halves", "cfg", "prompts"}, r"the prompt is half 1 .* says 0"),
        ({"branches": lambda pipe, call: False}, {"gate", "cfg"}, "`branches` says False while .* 2 of 2 halves"),
        ({"unguided": {"guidance_scale": 2.0}}, {"gate", "unguided"}, "with `unguided` the denoiser gets 4 rows"),
        ({"guided": {"guidance_scale": 1.0}}, {"gate", "cfg"}, "with `guided` the denoiser gets 2 rows"),
        ({"clock": lambda pipe, told: told / 2}, {"time", "unguided", "cfg"}, r"`clock` makes .* at step 0"),
        ({"timestep": "t"}, {"time", "unguided", "cfg"}, "the denoiser is given no 't'"),
        ({"negates": True}, {"sign"}, "the scheduler gets what it returns, and negates=True"),
        ({"rows": ()}, {"evaluations", "rows", "prompts"}, "evaluations"),
        ({"encode": _wrong_encode}, {"prompts"}, "the empty prompt beside a negative one .* does not hold"),
        ({"scratch": ()}, {"untouched", "exception"}, "leaves _guidance_scale"),
        ({"sequential": True}, {"calls", "cfg"}, "expected 2 a step: `denoiser`, `others` or `sequential`"),
        ({"positional": ("timestep", "sample")}, {"inputs"}, "`positional`, `sample`"),
        ({"offset": 1.0}, {"cfg"}, r"cfg\(4\) is its own guidance, guidance_scale=3, does not hold"),
        ({"own": "rescale(0.9)"}, {"cfg"}, r"cfg\(3\) \| rescale\(0.9\) is not its own guidance"),
        ({"denoiser": "vaes"}, {"components"}, "has no component vaes"),
    ],
)
def test_a_wrong_record_is_diagnosed(
    pipe: Any, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], failed: set[str], reason: str
) -> None:
    broken(monkeypatch, **changes)
    before = state(pipe)
    diagnosis = gs.doctor(pipe, rules=False)
    assert set(diagnosis.failed) == failed, str(diagnosis)
    assert not diagnosis.ok
    page = str(diagnosis)
    assert re.search(reason, page), page
    assert page.splitlines()[-1].split("failed: ")[1].split(";")[0] == ", ".join(diagnosis.failed)
    assert differences(before, state(pipe)) == []


@pytest.mark.slow
def test_a_record_that_forgets_the_summary_of_a_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "StableDiffusionXLPipeline"
    right: Any = FAMILIES[name].encode

    def forgets(*given: Any) -> Any:
        return {key: value for key, value in right(*given).items() if key == "encoder_hidden_states"}

    broken(monkeypatch, name, encode=forgets)
    assert gs.doctor(made(name), rules=False).failed == ("prompts",)


def test_a_record_without_the_scale_of_its_guidance_says_what_it_leaves_open(
    pipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken(monkeypatch, owned={"guidance_scale": "apg(scale)", "guidance_rescale": "rescale(phi)"})
    diagnosis = gs.doctor(pipe, rules=False)
    assert diagnosis.ok
    assert not_made(diagnosis) == ["halves", "cfg", "prompts"]
    assert "names no argument with the scale" in diagnosis["cfg"].reason


# --- broken pipelines ----------------------------------------------------------------------------------------------


class Proxy:
    def __init__(self, inner: Any) -> None:
        self.inner, self.config, self.dtype = inner, inner.config, inner.dtype

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner(*args, **kwargs)


def test_a_denoiser_replaced_by_a_proxy(new_pipe: Callable[..., Any]) -> None:
    pipe = new_pipe()
    pipe.unet = Proxy(pipe.unet)
    diagnosis = gs.doctor(pipe)
    assert diagnosis.failed == ("components",)
    assert "unet of StableDiffusionPipeline is Proxy, which is no torch.nn.Module" in diagnosis["components"].reason


def derived(monkeypatch: pytest.MonkeyPatch, pipe: Any, forward: Callable[..., Any]) -> Any:
    """The pipeline of another class, whose denoiser is called through `forward(unet, args, kwargs)`."""
    import diffusers

    class Derived(diffusers.StableDiffusionPipeline):
        class Shell:
            """In the place of the component for the length of a call."""

            def __init__(self, unet: Any) -> None:
                self.unet = unet

            def __getattr__(self, name: str) -> Any:
                return getattr(self.unet, name)

            def __call__(self, *args: Any, **kwargs: Any) -> Any:
                return ask(self.unet, args, kwargs)

        def __call__(self, prompt: Any = None, guidance_scale: float = 7.5, **kwargs: Any) -> Any:
            unet = self.unet
            self.__dict__["unet"] = self.Shell(unet)
            try:
                return super().__call__(prompt, guidance_scale=guidance_scale, **kwargs)
            finally:
                self.__dict__["unet"] = unet

    # As if it were written in the class: only a pipeline's own code calls its denoiser.
    code = forward.__code__.replace(co_qualname=f"{Derived.__qualname__}.ask")
    ask = types.FunctionType(code, forward.__globals__, closure=forward.__closure__)
    keywords = ("negative_prompt", "num_inference_steps", "generator", "output_type", "height", "width")
    record = replace(FAMILIES["StableDiffusionPipeline"], pipeline="Derived", keywords=keywords)
    record = replace(
        record,
        guided={"guidance_scale": 2.0},
        unguided={"guidance_scale": 1.0},
        example=lambda pipe, batch: {
            "num_inference_steps": 2,
            "output_type": "latent",
            "negative_prompt": ["dog"] * batch,
            "generator": [torch.Generator().manual_seed(seed) for seed in range(batch)],
        },
    )
    monkeypatch.setitem(FAMILIES, "Derived", record)
    pipe.__class__ = Derived
    return pipe


def test_a_pipeline_of_another_make(new_pipe: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = derived(monkeypatch, new_pipe(), lambda unet, args, kwargs: unet(*args, **kwargs))
    assert gs.doctor(pipe, rules=False).ok


def test_a_pipeline_that_calls_its_denoiser_twice(
    new_pipe: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def twice(unet: Any, args: Any, kwargs: Any) -> Any:
        unet(*args, **kwargs)
        return unet(*args, **kwargs)

    diagnosis = gs.doctor(derived(monkeypatch, new_pipe(), twice), rules=False)
    assert "calls" in diagnosis.failed
    assert "calls its denoiser 2 + 2 times in 2 steps, expected 1 a step" in diagnosis["calls"].reason
    assert "hook" in diagnosis.failed
    assert "the stack was evaluated 4 times in 2 steps" in diagnosis["hook"].reason


def test_a_pipeline_that_goes_around_the_hook(new_pipe: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = derived(monkeypatch, new_pipe(), lambda unet, args, kwargs: unet.forward(*args, **kwargs))
    diagnosis = gs.doctor(pipe, rules=False)
    assert diagnosis.failed == ("inputs",)
    assert "it made 2 steps and called its unet 0 times" in diagnosis["inputs"].reason


def test_a_pipeline_that_goes_around_it_once(new_pipe: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0

    def every_second(unet: Any, args: Any, kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        return unet(*args, **kwargs) if calls % 2 else unet.forward(*args, **kwargs)

    diagnosis = gs.doctor(derived(monkeypatch, new_pipe(), every_second), rules=False)
    assert {"calls", "cfg", "unguided"} <= set(diagnosis.failed)
    assert "1 + 0 times" in diagnosis["calls"].reason


def test_a_pipeline_that_does_not_repeat_itself(new_pipe: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    noise = torch.Generator().manual_seed(0)

    def noisy(unet: Any, args: Any, kwargs: Any) -> Any:
        (sample,) = unet(*args, **kwargs)
        return (sample + 1e-3 * torch.randn(sample.shape, generator=noise),)

    diagnosis = gs.doctor(derived(monkeypatch, new_pipe(), noisy), rules=False)
    assert diagnosis["cfg"].outcome == "not made"
    assert "does not repeat itself" in diagnosis["cfg"].reason


def test_a_pipeline_that_does_not_hear_its_prompts(new_pipe: Callable[..., Any]) -> None:
    pipe = new_pipe()
    with torch.no_grad():
        for name, parameter in pipe.unet.named_parameters():
            if "attn2.to_out" in name:
                parameter.zero_()
    diagnosis = gs.doctor(pipe, rules=False)
    assert diagnosis.ok
    assert "there is nothing to compare" in diagnosis["cfg"].reason
    assert {"cfg", "rows", "prompts"} <= set(not_made(diagnosis))


@pytest.mark.parametrize("value", [torch.nan, -torch.inf])
def test_weights_that_are_not_finite(new_pipe: Callable[..., Any], value: float) -> None:
    pipe = new_pipe()
    with torch.no_grad():
        pipe.unet.conv_in.weight[0, 0, 0, 0] = value
    diagnosis = gs.doctor(pipe)
    assert diagnosis.failed == ("components",)
    assert diagnosis["components"].reason.startswith("unet.conv_in: weights that are not finite (weight first)")
    assert not_made(diagnosis) == ["inputs", *CHECKS, "rules"]
    with torch.no_grad():
        pipe.vae.decoder.conv_out.bias[0] = value
        pipe.unet.conv_in.weight[0, 0, 0, 0] = 0
    assert diagnosis["components"].reason.startswith("unet.conv_in: weights that are not finite (weight first)")
    assert gs.doctor(pipe)["components"].reason.startswith("vae.decoder.conv_out: weights that are not finite (bias")


def test_finite_weights_and_samples_that_are_not(new_pipe: Callable[..., Any]) -> None:
    pipe = new_pipe()
    with torch.no_grad():
        pipe.unet.conv_out.weight.fill_(3e38)
    diagnosis = gs.doctor(pipe)
    assert diagnosis.failed == ("inputs",)
    assert "its samples are not finite, and its weights are. Give the arguments" in diagnosis["inputs"].reason
    with torch.no_grad():
        pipe.unet.conv_out.weight.fill_(6e4)
    assert "too large for float16, try bfloat16" in gs.doctor(pipe.to(dtype=torch.float16))["inputs"].reason


def test_coefficients_that_come_with_the_bundled_model() -> None:
    pipe = gs.load_emoji()
    found = list(trials.fitted(pipe, FAMILIES["StableDiffusionPipeline"], lambda: dict(EMOJI_CALL)))
    assert [(one.rule, one.evaluations, one.reason) for one in found] == [
        ("linear_ag(cfg(4), coefficients='emoji-cfg4-20')", 2, "")
    ]


def test_a_pipeline_that_does_not_run(new_pipe: Callable[..., Any]) -> None:
    pipe = new_pipe()
    pipe.text_encoder = None
    diagnosis = gs.doctor(pipe)
    assert diagnosis.failed == ("inputs",)
    assert "Give the arguments of a call that works as doctor(pipe, call={...})" in diagnosis["inputs"].reason
    assert not diagnosis.trials
    # And with such arguments it does.
    rows = torch.randn(2, 2, 16, 16, generator=torch.Generator().manual_seed(0))
    call = {"prompt_embeds": rows[0], "negative_prompt_embeds": rows[1]}
    diagnosis = gs.doctor(pipe, call, rules=False)
    assert diagnosis.ok, str(diagnosis)
    assert diagnosis["cfg"].outcome == "pass"
    assert diagnosis["prompts"].reason == "the call has embeddings and no texts"
    assert diagnosis["inputs"].reason.endswith(
        "generator, negative_prompt_embeds, num_inference_steps, output_type, prompt_embeds"
    )


# --- a broken guide() ----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _nothing(*given: Any) -> Iterator[None]:
    yield


def test_settings_that_are_left_are_found(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guiding, "restored", _nothing)
    diagnosis = gs.doctor(pipe, rules=False)
    assert {"untouched", "exception"} == set(diagnosis.failed)
    assert "leaves _guidance_scale" in diagnosis["untouched"].reason


def test_a_hook_that_is_left_by_a_failed_call_is_found(
    new_pipe: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    right, entered = guiding.calling, []

    @contextlib.contextmanager
    def careless(module: Any, hook: Any, mine: Any) -> Iterator[None]:
        context = right(module, hook, mine)
        entered.append(context)  # what is thrown away would end
        context.__enter__()
        yield
        context.__exit__(None, None, None)

    monkeypatch.setattr(guiding, "calling", careless)
    diagnosis = gs.doctor(new_pipe(), rules=False)
    assert diagnosis["untouched"].outcome == "pass"
    assert diagnosis["exception"].outcome == "fail"
    assert "UNet2DConditionModel: calls" in diagnosis["exception"].reason


@pytest.mark.parametrize("name", ["rows", "calls"])
def test_a_wrong_count_is_found(pipe: Any, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    right = getattr(Report, name).fget
    monkeypatch.setattr(Report, name, property(lambda report: right(report) + 1))
    diagnosis = gs.doctor(pipe, rules=False)
    assert diagnosis.failed == ("evaluations",)
    assert "the network had" in diagnosis["evaluations"].reason


def test_evaluations_that_are_not_saved_are_found(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gs.Prefix, "queries", lambda rule, step, state: rule.rule.queries(step, state))
    diagnosis = gs.doctor(pipe, rules=False)
    assert diagnosis.failed == ("evaluations",)
    assert "prefix(cfg(3), 1): 8 rows in 2 steps of 2 samples, expected 3 for each" in diagnosis["evaluations"].reason


@pytest.mark.parametrize(
    ("harm", "name"),
    [
        (lambda pipe: pipe.unet.register_forward_hook(lambda *given: None), "unet: hooks"),
        (lambda pipe: setattr(pipe.unet, "forward", pipe.unet.forward), "unet: forward"),
        (lambda pipe: pipe.unet.conv_in.bias.requires_grad_(False).add_(0), "unet: weights"),
        (lambda pipe: pipe.register_to_config(requires_safety_checker=True), "model_index.json"),
        (lambda pipe: setattr(pipe.scheduler, "mine", 1), "scheduler: mine"),
        (lambda pipe: setattr(pipe, "vae", type(pipe.vae).from_config(pipe.vae.config)), "vae: identity"),
        (lambda pipe: pipe.unet.train(not pipe.unet.training), "unet: training"),
    ],
)
def test_what_is_compared(
    new_pipe: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, harm: Callable[[Any], Any], name: str
) -> None:
    right = guiding.GuidedPipeline._run

    def harmful(self: Any, session: Any) -> Any:
        try:
            return right(self, session)
        finally:
            harm(self.pipe)

    monkeypatch.setattr(guiding.GuidedPipeline, "_run", harmful)
    diagnosis = gs.doctor(new_pipe(), rules=False)
    assert "untouched" in diagnosis.failed
    assert name in diagnosis["untouched"].reason


# --- pipelines without a record ------------------------------------------------------------------------------------


def test_a_pipeline_without_a_record(new_pipe: Callable[..., Any]) -> None:
    import diffusers

    class Mine(diffusers.StableDiffusionPipeline):
        def __call__(self, prompt: Any = None, guidance_scale: float = 7.5) -> Any:
            raise AssertionError("it is not run")

    pipe = new_pipe()
    pipe.__class__ = Mine
    diagnosis = gs.doctor(pipe)
    assert diagnosis.failed == ("record",)
    nearest = "there is none for Mine; the nearest is that of StableDiffusionPipeline, whose __call__ it replaces"
    assert diagnosis["record"].reason == nearest
    assert "dataclasses.replace(FAMILIES['StableDiffusionPipeline'], pipeline='Mine')" in str(diagnosis)
    assert not_made(diagnosis) == ["components", "inputs", *CHECKS, "rules"]

    class FluxFillPipeline:
        def __init__(self) -> None:
            self.transformer = torch.nn.Linear(1, 1)

        def __call__(self, prompt: Any = None, true_cfg_scale: float = 1.0) -> Any:
            raise AssertionError("it is not run")

    assert "that of FluxPipeline, by its package" in gs.doctor(FluxFillPipeline())["record"].reason


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("LatentConsistencyModelPipeline", "StableDiffusionPipeline"),
        ("LatentConsistencyModelImg2ImgPipeline", "StableDiffusionImg2ImgPipeline"),
        ("FluxControlPipeline", "FluxPipeline"),
        ("WanVACEPipeline", "WanPipeline"),
        ("ChromaInpaintPipeline", "ChromaImg2ImgPipeline"),
        ("Kandinsky3Img2ImgPipeline", "Kandinsky3Pipeline"),
        ("PNDMPipeline", "DDPMPipeline"),
    ],
)
def test_the_nearest_record(name: str, nearest: str) -> None:
    import diffusers

    cls = getattr(diffusers, name)
    components = [one for one in inspect.signature(cls.__init__).parameters if one != "self"]
    assert nearest_records(name, cls, components)[0] == nearest
    assert set(nearest_records(name, cls, components)) == set(FAMILIES)


def test_a_copy_of_the_nearest_record_is_right(new_pipe: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers import LatentConsistencyModelPipeline, LCMScheduler

    sd = new_pipe(time_cond_proj_dim=8)
    parts = {**sd.components, "scheduler": LCMScheduler(), "requires_safety_checker": False}
    pipe = LatentConsistencyModelPipeline(**parts)
    nearest = re.search(r"nearest is that of (\w+),", gs.doctor(pipe)["record"].reason)
    assert nearest
    record = replace(FAMILIES[nearest[1]], pipeline="LatentConsistencyModelPipeline")
    monkeypatch.setitem(FAMILIES, record.pipeline, record)
    diagnosis = gs.doctor(pipe, rules=False)
    assert diagnosis.ok, str(diagnosis)


# --- the value, and what it is given -------------------------------------------------------------------------------


def test_the_diagnosis_is_a_frozen_value(pipe: Any) -> None:
    one, two = (gs.doctor(pipe, rules=False) for _ in range(2))
    assert one == two
    assert hash(one) == hash(two)
    with pytest.raises(FrozenInstanceError):
        one.pipeline = "another"
    with pytest.raises(KeyError, match="halfs"):
        one["halfs"]


def test_arguments_of_the_users_own(pipe: Any) -> None:
    generator = torch.Generator().manual_seed(5)
    before = generator.get_state()
    call = {"prompt": ["a", "b", "a pig"], "generator": generator, "num_inference_steps": 3}
    diagnosis = gs.doctor(pipe, call, rules=False)
    assert diagnosis.ok, str(diagnosis)
    assert diagnosis.example.startswith("samples of 3 x 4 x 8 x 8, 3 steps")
    assert torch.equal(before, generator.get_state())
    assert set(call) == {"prompt", "generator", "num_inference_steps"}
    with pytest.raises(InputError, match="call= has 'guidance_scale', which rules replace: leave it out"):
        gs.doctor(pipe, {"guidance_scale": 3})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(new_pipe: Callable[..., Any], dtype: torch.dtype) -> None:
    pipe = new_pipe().to(dtype=dtype)
    diagnosis = gs.doctor(pipe, rules=False)
    assert diagnosis.ok, str(diagnosis)
    assert diagnosis["cfg"].outcome == "pass"
    assert f"{str(dtype).removeprefix('torch.')} on cpu" in diagnosis.example
    assert pipe.unet.dtype == dtype


@pytest.mark.slow
def test_several_controlnets_and_sizes() -> None:
    from diffusers import StableDiffusionControlNetPipeline

    pipe = load("StableDiffusionControlNetPipeline").make()
    parts = {**pipe.components, "controlnet": [pipe.controlnet, pipe.controlnet], "requires_safety_checker": False}
    several = StableDiffusionControlNetPipeline(**parts)
    assert gs.doctor(several, rules=False).ok
    # A size of one's own is used as it is.
    diagnosis = gs.doctor(made("FluxPipeline"), {"height": 24, "width": 16}, rules=False)
    assert diagnosis.ok
    assert "samples of 2 x 24 x 16" in diagnosis.example


def test_the_checks_are_documented() -> None:
    text = (Path(gs.__file__).parent / "docs" / "families.md").read_text()
    assert [name for name in (*CHECKS, "rules") if f"| `{name}` |" not in text] == []


def test_the_record_has_a_scale_where_there_is_guidance() -> None:
    without = [name for name, record in FAMILIES.items() if not record.scale]
    assert without == ["DDPMPipeline", "DDIMPipeline"]
    assert FAMILIES["FluxPipeline"].scale == "true_cfg_scale"
    assert isinstance(FAMILIES["FluxPipeline"], Family)
