"""Several negatives and positives for each prompt: what is taken, and what is refused or said."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

import guidestack as gs
from guidestack.guidance.errors import InputError, RuleError, UnsupportedPipelineError
from guidestack.pipelines.prompts import per_prompt

GIVEN: dict[str, Any] = {"num_inference_steps": 2, "output_type": "latent"}


def seeded(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(sample) for sample in range(count)]


def run(pipe: Any, stack: Any, prompt: Any, **more: Any) -> Any:
    """The images and the report, on DDIM."""
    from diffusers import DDIMScheduler

    pipe.scheduler = DDIMScheduler(steps_offset=1, clip_sample=False)
    guided = gs.guide(pipe, stack)
    count = len(prompt) if isinstance(prompt, list) else 1
    return guided(prompt, generator=seeded(count), **GIVEN, **more).images, guided.report


# --- the forms in which prompts are given --------------------------------------------------------------------------

ONE, TWO = {"prompt": "a"}, {"prompt": ["a", "b"]}


@pytest.mark.parametrize(
    ("value", "call", "wanted"),
    [
        (None, ONE, [[]]),
        (None, TWO, [[], []]),
        ("x", ONE, [["x"]]),
        ("x", TWO, [["x"], ["x"]]),
        ("", TWO, [[], []]),
        (["x", "y"], ONE, [["x", "y"]]),
        (("x", "y"), ONE, [["x", "y"]]),
        ([["x", "y"]], ONE, [["x", "y"]]),
        ([], ONE, [[]]),
        (["x", "y"], TWO, [["x"], ["y"]]),
        ([["x", "y"], "z"], TWO, [["x", "y"], ["z"]]),
        ([["x", "y"], []], TWO, [["x", "y"], []]),
        ((("x", "y"), ("z",)), TWO, [["x", "y"], ["z"]]),
        ([["x"]], {"prompt": ["a"]}, [["x"]]),
        ([["x"], "y"], {"prompt": None, "prompt_embeds": torch.zeros(2, 3, 4)}, [["x"], ["y"]]),
        # Empty ones count for nothing at the end; before others they keep their place, and with it their weight.
        (["", "x"], TWO, [[], ["x"]]),
        ([["x", ""], ["", ""]], TWO, [["x"], []]),
        ([["", "x", ""]], ONE, [["", "x"]]),
    ],
)
def test_forms(value: Any, call: dict[str, Any], wanted: list[list[str]]) -> None:
    assert per_prompt(value, call, "negative_prompt") == wanted


@pytest.mark.parametrize(
    ("value", "call", "message"),
    [
        (["x"], TWO, "negative_prompt has 1 entries for 2 prompts"),
        ([["x"], ["y"], ["z"]], TWO, "negative_prompt has 3 entries for 2 prompts"),
        (["x", "y"], {"prompt": ["a"]}, "negative_prompt has 2 entries for 1 prompts"),
        ([["x"], ["y"]], ONE, "negative_prompt has 2 entries for 1 prompts"),
        (["x"], {"prompt": None, "prompt_embeds": torch.zeros(2, 3, 4)}, "has 1 entries for 2 prompts"),
        ([["x"], 5], TWO, "takes texts, or for each prompt a list of texts; got 5"),
        ([["x"], [None]], TWO, r"takes texts, or for each prompt a list of texts; got \[None\]"),
        ([["x"], [["y"]]], TWO, r"takes texts, or for each prompt a list of texts; got \[\['y'\]\]"),
        (5, ONE, "takes texts, or for each prompt a list of texts; got 5"),
        (b"x", ONE, "takes texts, or for each prompt a list of texts; got b'x'"),
    ],
)
def test_other_forms_are_refused_in_one_line(value: Any, call: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        per_prompt(value, call, "negative_prompt")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("argument", "value"), [("negative_prompt", ["x"]), ("extra_prompt", ["x"]), ("extra_prompt", [["x"], [3]])]
)
def test_they_are_refused_before_the_text_encoder_runs(pipe: Any, argument: str, value: Any) -> None:
    calls: list[int] = []
    hook = pipe.text_encoder.register_forward_pre_hook(lambda module, args: calls.append(1))
    with pytest.raises(InputError, match=f"^{argument} "):
        run(pipe, gs.PerpNeg(3), ["a", "b"], **{argument: value})
    hook.remove()
    assert not calls


# --- arguments that no rule uses -----------------------------------------------------------------------------------


@pytest.mark.parametrize("stack", ["cfg(3)", "stack()", "cfgpp(0.6)", "icg(2)"])
def test_what_only_perp_neg_takes(pipe: Any, stack: str) -> None:
    for more in ({"extra_prompt": "x"}, {"extra_prompt": []}):
        with pytest.raises(InputError, match=r"^extra_prompt was given, and no rule of .* uses it; perpneg\(scale\)"):
            run(pipe, stack, "a", **more)
    for negative in ([["x", "y"]], [["x"]], (("x",),)):
        with pytest.raises(InputError, match=r"^a list of negatives for each prompt was given, and no rule of"):
            run(pipe, stack, ["a"], negative_prompt=negative)


def test_perp_neg_inside_others_takes_them_too(pipe: Any) -> None:
    for stack in (
        gs.Prefix(gs.PerpNeg(3), 1),
        gs.AdaptiveGuidance(gs.PerpNeg(3), 1.5),
        gs.PerpNeg(3) | gs.Rescale(0.5),
    ):
        _, report = run(pipe, stack, "a", negative_prompt=["x", "y"], extra_prompt="z")
        assert report.evaluations == [6 if isinstance(stack, gs.Prefix) else 10]


@pytest.mark.parametrize(
    ("stack", "message"),
    [
        (gs.ICG(3, source="class"), "no random condition from source='class'; it has 'tokens', 'gaussian'"),
        (gs.APG(3, against="independent:class"), "no random condition from source='class'"),
    ],
)
def test_a_random_class_for_a_model_of_texts(pipe: Any, stack: gs.Rule, message: str) -> None:
    with pytest.raises(UnsupportedPipelineError, match=message):
        gs.guide(pipe, stack)


def test_random_tokens_without_a_text_encoder(new_pipe: Any) -> None:
    pipe = new_pipe()
    embeddings = pipe.encode_prompt("a", "cpu", 1, False)[0]
    pipe.text_encoder = None
    with pytest.raises(UnsupportedPipelineError, match=r"need a text encoder, .* use icg"):
        run(pipe, gs.ICG(3), None, prompt_embeds=embeddings)
    _, report = run(pipe, gs.ICG(3, source="gaussian"), None, prompt_embeds=embeddings)
    assert report.evaluations == [4]


# --- weights -------------------------------------------------------------------------------------------------------


def test_too_few_weights_are_an_error(pipe: Any) -> None:
    with pytest.raises(RuleError, match="PerpNeg has 1 weights for 2 negative prompts; give one for each"):
        run(pipe, gs.PerpNeg(3, weights=(1.0,)), ["a", "b"], negative_prompt=[["x", "y"], []])
    with pytest.raises(RuleError, match="PerpNeg has 1 weights for 2 further positive prompts"):
        run(pipe, gs.PerpNeg(3, positive_weights=(1.0,)), "a", extra_prompt=["x", "y"])


@pytest.mark.parametrize(
    ("stack", "more", "message"),
    [
        (gs.PerpNeg(3, weights=(1, 0.5)), {"negative_prompt": "x"}, "has 2 weights for 1 negative prompts"),
        (gs.PerpNeg(3, weights=(1, 0.5)), {}, "has 2 weights for 0 negative prompts"),
        (gs.PerpNeg(3, weights=(1, 0.5)), {"negative_prompt": ["x", ""]}, "has 2 weights for 1 negative prompts"),
        (
            gs.PerpNeg(3, positive_weights=(1, 1, 2)),
            {"extra_prompt": ["x", "y"]},
            "has 3 weights for 2 further positive prompts",
        ),
        (gs.Prefix(gs.PerpNeg(3, weights=(1, 0.5)), 1), {"negative_prompt": "x"}, "has 2 weights for 1 negative"),
    ],
)
def test_too_many_weights_are_said(pipe: Any, stack: gs.Rule, more: dict[str, Any], message: str) -> None:
    with pytest.warns(gs.GuidestackWarning, match=message) as caught:
        run(pipe, stack, "a", **more)
    assert len(caught) == 1
    assert caught[0].filename == __file__  # at the line that calls the guided pipeline


def test_weights_that_some_sample_uses_are_not_said(pipe: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(pipe, gs.PerpNeg(3, weights=(1, 0.5)), ["a", "b"], negative_prompt=[["x", "y"], []])
        run(pipe, gs.PerpNeg(3, weights=0.5), "a", negative_prompt="x")


def close(seen: Any, wanted: Any) -> bool:
    return bool((seen - wanted).abs().max() < 2e-5 * wanted.abs().max())


def test_an_empty_negative_keeps_its_weight_to_itself(pipe: Any) -> None:
    weighted = gs.PerpNeg(3, weights=(1.0, 0.5))
    wanted, _ = run(pipe, gs.PerpNeg(3, weights=0.5), "a", negative_prompt="x")
    seen, report = run(pipe, weighted, "a", negative_prompt=["", "x"])
    assert close(seen, wanted)
    assert report.evaluations == [6]  # the empty one is the empty prompt, which is evaluated anyway
    full, _ = run(pipe, gs.PerpNeg(3, weights=1.0), "a", negative_prompt="x")
    assert not close(full, wanted)
    # For one of two prompts, where the pipeline has a negative prompt in any case.
    both, _ = run(pipe, weighted, ["a", "b"], negative_prompt=[["", "x"], ["y", "x"]])
    assert close(both[:1], wanted)


@pytest.mark.parametrize("negative", [None, "", [], [""], ["", ""]])
def test_without_negatives_it_is_cfg_against_the_empty_prompt(pipe: Any, negative: Any) -> None:
    wanted, _ = run(pipe, gs.CFG(3, against="null"), "a")
    seen, report = run(pipe, gs.PerpNeg(3), "a", **({} if negative is None else {"negative_prompt": negative}))
    assert close(seen, wanted)
    assert report.evaluations == [4]


def test_the_same_call_twice_is_the_same_and_leaves_its_arguments_alone(pipe: Any) -> None:
    negative, extra = [["x", ""], ["", "y"]], [["u"], "v"]
    first, _ = run(pipe, gs.PerpNeg(3), ["a", "b"], negative_prompt=negative, extra_prompt=extra)
    second, _ = run(pipe, gs.PerpNeg(3), ["a", "b"], negative_prompt=negative, extra_prompt=extra)
    assert torch.equal(first, second)
    assert negative == [["x", ""], ["", "y"]]
    assert extra == [["u"], "v"]
