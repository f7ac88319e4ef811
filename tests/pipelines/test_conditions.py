"""Negatives and the empty condition: decided for each sample, given as texts or as embeddings, of any length."""

from __future__ import annotations

import copy
import inspect
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import pytest
import torch

import guidestack as gs
from guidestack.guidance.errors import InputError, UnsupportedPipelineError
from guidestack.pipelines.families.record import FAMILIES, Family

from .stock import trajectory
from .tiny import PIPELINES, load

pytestmark = [
    pytest.mark.filterwarnings("ignore:this network was distilled"),
    pytest.mark.filterwarnings("ignore:a negative prompt was given, and no rule"),
]

NO_NEGATIVES = ["Flux2KleinPipeline"]
"""It takes no negative prompt."""
WITH_TEXTS = [name for name in PIPELINES if name not in NO_NEGATIVES]
EMBEDDED = [
    "StableDiffusionImg2ImgPipeline",
    "StableDiffusionInstructPix2PixPipeline",
    "StableDiffusionXLPipeline",
    "StableDiffusion3Pipeline",
    "FluxPipeline",
    "QwenImagePipeline",
    "ChromaPipeline",
    "AuraFlowPipeline",
    "Lumina2Pipeline",
    "ZImagePipeline",
    "HiDreamImagePipeline",
    "CogVideoXPipeline",
    "LTXPipeline",
    "HunyuanVideoPipeline",
    "MochiPipeline",
    "WanPipeline",
    "CogView4Pipeline",
    "PixArtSigmaPipeline",
    "SanaPipeline",
    "HunyuanDiTPipeline",
    "KolorsPipeline",
    "Kandinsky3Pipeline",
    "AudioLDM2Pipeline",
]
"""A pipeline of each way to take embeddings."""
BATCH = 3
BLUE = ["", "blue", "a tree"]


@cache
def made(name: str) -> Any:
    return load(name).make()


def family(name: str) -> Family:
    return FAMILIES[name.partition(",")[0]]


def takes(name: str) -> list[str]:
    """The arguments of a pipeline."""
    return list(inspect.signature(made(name).__call__).parameters)


SEVERAL = [
    name
    for name in WITH_TEXTS
    if name.startswith(("StableDiffusionXL", "StableDiffusion3", "Flux", "HiDream", "HunyuanVideo"))
]
"""Pipelines with several arguments for the texts of a negative prompt."""


def marked(names: Sequence[str]) -> list[Any]:
    """One pipeline for each record of embeddings in every run of the tests, and its variants in the slow ones."""
    quick = [*EMBEDDED, "StableAudioPipeline", "StableDiffusionControlNetPipeline"]
    return [pytest.param(name, marks=[pytest.mark.slow] * (name not in quick)) for name in names]


def arguments(name: str, batch: int = BATCH, **more: Any) -> dict[str, Any]:
    made(name)  # and the global generator is not moved behind the arguments, which may seed it
    given: dict[str, Any] = load(name).arguments(batch, False, **more)
    return given


def only(given: Mapping[str, Any], sample: int) -> dict[str, Any]:
    """The arguments of one sample of a batch."""
    split = ("prompt", "generator", "image", "mask_image", "control_image", "video")
    return {
        name: value[sample : sample + 1]
        if (name in split or name.startswith("negative_prompt")) and len(value) == BATCH
        else value
        for name, value in given.items()
    }


def steps(name: str, stack: str, **given: Any) -> torch.Tensor:
    pipe = made(name)
    reached = trajectory(pipe, gs.guide(pipe, stack), given)
    # Its first frame is put back after each step.
    return reached[:, :, :, 1:] if name == "WanImageToVideoPipeline, a timestep for each token" else reached


def near(one: torch.Tensor, other: torch.Tensor, tolerance: float = 5e-5) -> bool:
    return bool((one - other).abs().max() <= tolerance * other.abs().max())


# --- what a negative is ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_pipelines_with_several_texts_are_those() -> None:
    import diffusers

    classes = {name: getattr(diffusers, name.partition(",")[0]) for name in WITH_TEXTS}
    found = [name for name, cls in classes.items() if "negative_prompt_2" in inspect.signature(cls.__call__).parameters]
    assert found == SEVERAL


@pytest.mark.parametrize("name", marked(SEVERAL))
def test_a_text_for_a_further_encoder_is_a_negative(name: str) -> None:
    """The empty condition stays what it is beside it, and Perp-Neg takes it for one."""
    last = [one for one in takes(name) if re.fullmatch(r"negative_prompt_\d", one)][-1]
    given: dict[str, Any] = {last: ["", "blue", "a tree"]}
    if family(name).zeros(made(name)):  # without, the pipeline itself does not look at the other
        given["negative_prompt"] = [""] * BATCH
    more = {"negative_prompt": [""] * BATCH} if "ControlNet" in name else {}
    without = steps(name, "cfg(3, against='null')", **arguments(name, **more))
    beside = steps(name, "cfg(3, against='null')", **arguments(name, **given))
    same = slice(1) if "ControlNet" in name else slice(None)  # whose residuals are those of the pipeline's own negative
    assert near(beside[:, same], without[:, same])
    guided = gs.guide(made(name), "perpneg(3)")
    perpendicular = trajectory(made(name), guided, arguments(name, **given))
    made_in = len(guided.report.steps)
    assert guided.report.evaluations == [2 * made_in, 3 * made_in, 3 * made_in]
    assert near(perpendicular[:, :1], without[:, :1])
    if name != "HunyuanVideoPipeline":  # whose tiny network hardly hears this text
        negative = steps(name, "cfg(3)", **arguments(name, **given))[:, 1:]
        assert not near(negative, without[:, 1:], 1e-3)
        assert not near(perpendicular[:, 1:], negative, 1e-3)


@pytest.mark.parametrize("name", marked(WITH_TEXTS))
def test_the_empty_condition_is_always_the_same_one(name: str) -> None:
    stack = "cfg(3, against='null')"
    wanted = steps(name, stack, **arguments(name))
    for negative in ([""] * BATCH, BLUE, ["blue"] * BATCH):
        seen = steps(name, stack, **arguments(name, negative_prompt=negative))
        if "ControlNet" in name:  # the residuals are those of the pipeline's own negative text
            seen, wanted = seen[:, :1], wanted[:, :1]
            if negative[0] or family(name).zeros(made(name)):
                continue
        assert near(seen, wanted), negative


# --- a sample and its batch ----------------------------------------------------------------------------------------

STACKS = [
    "cfg(3)",
    "perpneg(3)",
    "apg(3, against='null', eta=0.3)",
    "cfg(3) | renoise()",
    "cfgpp(0.6)",
    "cfg(2) | cfg(2, against='null')",
]
MIXTURES: list[dict[str, Any]] = [
    {"negative_prompt": BLUE},
    {"negative_prompt": ["", "", "red"], "negative_prompt_2": ["", "blue", ""]},
    {"negative_prompt_2": BLUE},
]


MIXED = ["StableDiffusionXLPipeline", "StableDiffusion3Pipeline", "FluxPipeline", "PixArtSigmaPipeline", "SanaPipeline"]


@pytest.mark.filterwarnings("ignore:negative_prompt_2 does nothing")
@pytest.mark.parametrize(
    ("name", "stack"),
    [*((name, stack) for name in MIXED for stack in STACKS), ("StableDiffusionXLPipeline", "icg(3)")],
)
def test_a_sample_of_a_mixture_is_what_it_is_alone(name: str, stack: str) -> None:
    for given in MIXTURES:
        if set(given) - set(takes(name)):
            continue
        together = steps(name, stack, **arguments(name, **given))
        for sample in range(BATCH):
            alone = only(arguments(name, **given), sample)
            assert near(steps(name, stack, **alone)[:, 0], together[:, sample], 1e-4), (given, sample)
        if given != MIXTURES[1] and stack.startswith(("perpneg", "apg")):  # an empty text is as good as none
            without = only(arguments(name), 0)
            assert near(steps(name, stack, **without)[:, 0], together[:, 0], 1e-4)


def test_several_negatives_of_a_mixture() -> None:
    for name in ("StableDiffusionXLPipeline", "FluxPipeline"):
        lists = [[], ["", "blue"], ["a tree", "", "red"]]
        together = steps(name, "perpneg(3, weights=(1, 0.5, 2))", **arguments(name, negative_prompt=lists))
        for sample, wanted in enumerate([[[]], [["", "blue"]], [["a tree", "", "red"]]]):
            given = only(arguments(name), sample) | {"negative_prompt": wanted}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", gs.GuidestackWarning)  # of weights that this one does not use
                alone = steps(name, "perpneg(3, weights=(1, 0.5, 2))", **given)
            assert near(alone[:, 0], together[:, sample], 1e-4), (name, sample)
    with pytest.raises(InputError, match="negative_prompt_2 was given beside negatives of which the first is empty"):
        steps(name, "perpneg(3)", **arguments(name, negative_prompt=lists, negative_prompt_2=["", "red", ""]))
    with pytest.raises(InputError, match=r"negative_prompt_2 takes one text for each prompt, got \['a', 'b'\]"):
        steps(name, "perpneg(3)", **arguments(name, negative_prompt_2=["", ["a", "b"], ""]))


def texts_of(name: str, run: Any) -> list[torch.Tensor]:
    """The text embeddings that a network is given at the first step, of a run."""
    seen: list[torch.Tensor] = []
    module = getattr(made(name), family(name).denoiser)
    handle = module.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["encoder_hidden_states"].clone()), with_kwargs=True
    )
    run()
    handle.remove()
    return seen


def test_the_empty_condition_of_stable_diffusion_xl() -> None:
    """Zeros as the base model's configuration says, though "" is given; then CFG is against the encoded empty text."""
    name = "StableDiffusionXLPipeline"
    pipe, stack = made(name), "cfg(3, against='null')"
    assert pipe.config.force_zeros_for_empty_prompt
    for negative in (None, "", "blue"):
        given = {"prompt": "a cat", "negative_prompt": negative}
        rows = texts_of(name, lambda given=given: gs.guide(pipe, stack)(**only(arguments(name), 0) | given))[0]
        assert sorted((row == 0).all().item() for row in rows) == [False, True]
        stock = trajectory(pipe, pipe, only(arguments(name), 0) | given | {"guidance_scale": 3.0})
        assert torch.equal(steps(name, "cfg(3)", **only(arguments(name), 0) | given), stock)
    stock = trajectory(pipe, pipe, arguments(name, negative_prompt=BLUE, guidance_scale=3.0))
    assert torch.equal(steps(name, "cfg(3)", **arguments(name, negative_prompt=BLUE)), stock)
    with pytest.warns(gs.GuidestackWarning, match="negative_prompt_2 does nothing in .* without negative_prompt"):
        assert torch.equal(
            steps(name, "cfg(3)", **arguments(name, negative_prompt_2=BLUE)),
            trajectory(pipe, pipe, arguments(name, negative_prompt_2=BLUE, guidance_scale=3.0)),
        )
    pipe.register_to_config(force_zeros_for_empty_prompt=False)
    encoded = pipe.encode_prompt("", device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False)[0]
    for negative in (None, "", "blue"):
        given = only(arguments(name), 0) | {"prompt": "a cat", "negative_prompt": negative}
        rows = texts_of(name, lambda given=given: gs.guide(pipe, stack)(**given))[0]
        assert sum(near(row, encoded[0]) for row in rows) == 1
    pipe.register_to_config(force_zeros_for_empty_prompt=True)


# --- embeddings ----------------------------------------------------------------------------------------------------


def embedded(name: str, texts: Sequence[str], prefix: str = "", **more: Any) -> dict[str, Any]:
    """The arguments of a pipeline for the embeddings of texts, with a prefix to their names."""
    one = family(name)
    assert one.encode is not None
    with torch.no_grad():
        rows = one.encode(made(name), arguments(name, len(texts), **more), texts, not prefix)
    found = {key: rows[row] for key, row in one.embeds.items() if row}
    if "prompt_attention_mask" in one.embeds:
        found.setdefault("prompt_attention_mask", torch.ones(found["prompt_embeds"].shape[:2]))
    return {prefix + key: value for key, value in found.items()}


def nothing(name: str, **more: Any) -> dict[str, Any]:
    """The embeddings of the empty condition, by the names of a prompt's."""
    rows = {key.removeprefix("negative_"): one for key, one in embedded(name, [""], "negative_", **more).items()}
    return {key: torch.zeros_like(one) for key, one in rows.items()} if family(name).zeros(made(name)) else rows


def without_texts(name: str, batch: int = 2, **more: Any) -> dict[str, Any]:
    """The arguments of a call with embeddings."""
    given = {key: value for key, value in arguments(name, batch).items() if key != "prompt"}
    if "negative_prompt" in takes(name):
        given["negative_prompt"] = None  # by default it is an empty text in some
    return given | more


def freed(name: str) -> Any:
    """A pipeline without text encoders, on the same networks."""
    pipe = copy.copy(made(name))
    for part in made(name).components:
        if part.startswith(("text_encoder", "tokenizer")) and name != "AudioLDM2Pipeline":  # which needs them anyway
            setattr(pipe, part, None)
    return pipe


PROMPTS, NEGATIVES = ["a cat", "red"], ["a dog", "sky"]


def test_a_pipeline_of_each_record_with_embeddings_is_tried() -> None:
    known = {tuple(family(name).embeds.items()) for name in WITH_TEXTS if family(name).embeds}
    assert {tuple(family(name).embeds.items()) for name in EMBEDDED} == known


@pytest.mark.parametrize("name", EMBEDDED)
def test_all_conditions_as_embeddings_and_no_text_encoder(name: str) -> None:
    second, stack = ["a hat", "xyz"], "perpneg(3, weights=(1, 0.5))"
    texts = {"prompt": PROMPTS, "negative_prompt": [list(pair) for pair in zip(NEGATIVES, second, strict=True)]}
    wanted = steps(name, stack, **arguments(name, 2, **texts))
    negatives = [embedded(name, one, "negative_") for one in (NEGATIVES, second)]
    lists = {key: [one[key] for one in negatives] for key in negatives[0]}
    given = embedded(name, PROMPTS) | {"null_embeds": nothing(name)}
    pipe = freed(name)
    seen = trajectory(pipe, gs.guide(pipe, stack), without_texts(name, **given, **lists))
    assert near(seen, wanted, 1e-4)
    # Where no negative is given, it is what the pipeline itself contrasts with.
    wanted = steps(name, "cfg(3)", **arguments(name, 2, prompt=PROMPTS))
    assert near(trajectory(pipe, gs.guide(pipe, "cfg(3)"), without_texts(name, **given)), wanted, 1e-4)


def test_a_pipeline_without_negative_prompts_takes_an_empty_condition() -> None:
    name = "Flux2KleinPipeline"
    wanted = steps(name, "cfg(3)", **arguments(name, 2, prompt=PROMPTS))
    given = embedded(name, PROMPTS) | {"null_embeds": nothing(name)["prompt_embeds"]}
    assert near(trajectory(freed(name), gs.guide(freed(name), "cfg(3)"), without_texts(name, **given)), wanted, 1e-4)


def test_an_empty_text_does_not_blank_its_neighbours() -> None:
    """Mochi's own encoder takes all texts of a call for empty where the last one is."""
    name = "MochiPipeline"
    pipe, encode = made(name), family(name).encode
    assert encode is not None
    pipe.register_to_config(force_zeros_for_empty_prompt=True)
    try:
        texts = ["old", "", "a pig", ""]
        with torch.no_grad():
            together = encode(pipe, arguments(name, 1), texts, False)
            for index, text in enumerate(texts):
                for key, value in encode(pipe, arguments(name, 1), [text], False).items():
                    assert near(value[0].float(), together[key][index].float()), (key, text)
    finally:
        pipe.register_to_config(force_zeros_for_empty_prompt=False)


PADDED = [
    "StableDiffusion3Pipeline",
    "FluxPipeline",
    "ChromaPipeline",
    "AuraFlowPipeline",
    "Lumina2Pipeline",
    "HiDreamImagePipeline",
    "LTXPipeline",
    "HunyuanVideoPipeline",
    "MochiPipeline",
    "WanPipeline",
    "PixArtAlphaPipeline",
    "PixArtSigmaPipeline",
    "SanaPipeline",
]
"""Pipelines that pad all texts to `max_sequence_length`."""


@pytest.mark.parametrize("name", PADDED)
def test_embeddings_of_another_length_have_an_empty_condition_of_that_length(name: str) -> None:
    long = {"max_sequence_length": 12 if name == "HiDreamImagePipeline" else 24}  # its CLIP encoders take 16
    given = embedded(name, PROMPTS, **long) | embedded(name, NEGATIVES, "negative_", **long)
    for stack in ("perpneg(3)", "cfg(3) | renoise()"):
        wanted = steps(name, stack, **arguments(name, 2, prompt=PROMPTS, negative_prompt=NEGATIVES, **long))
        call = without_texts(name, **given)
        call.pop("max_sequence_length", None)  # the default is another, and the embeddings tell
        assert near(steps(name, stack, **call), wanted, 1e-4), stack


def test_kolors_pads_to_its_own_length_only() -> None:
    """It takes `max_sequence_length`, and does not hand it on."""
    name = "KolorsPipeline"
    texts = {"prompt": PROMPTS, "negative_prompt": NEGATIVES}
    wanted = steps(name, "perpneg(3)", **arguments(name, 2, **texts))
    assert torch.equal(steps(name, "perpneg(3)", **arguments(name, 2, **texts, max_sequence_length=24)), wanted)
    given = embedded(name, PROMPTS) | embedded(name, NEGATIVES, "negative_")
    call = {key: value[:, :24] if value.ndim == 3 else value for key, value in given.items()}
    embeddings, _, pooled, _ = made(name).encode_prompt([""], "cpu", 1, False, max_sequence_length=24)
    empty = {"prompt_embeds": embeddings, "pooled_prompt_embeds": pooled}
    seen = steps(name, "perpneg(3)", **without_texts(name, **call))
    assert near(seen, steps(name, "perpneg(3)", **without_texts(name, **call), null_embeds=empty))


def chunks(name: str, texts: Sequence[Sequence[str]], prefix: str = "") -> dict[str, Any]:
    """Embeddings of prompts in chunks of the encoder's 16 tokens; the pooled one is the first's."""
    parts = [embedded(name, part, prefix) for part in zip(*texts, strict=True)]
    return {
        key: torch.cat([part[key] for part in parts], 1) if value.ndim == 3 else value
        for key, value in parts[0].items()
    }


@pytest.fixture(
    params=["StableDiffusionImg2ImgPipeline", "StableDiffusionInstructPix2PixPipeline", "zeros", "no zeros"]
)
def chunked(request: Any) -> Iterator[str]:
    """Pipelines for which long prompts are encoded in chunks: Stable Diffusion and both kinds of XL."""
    name = "StableDiffusionXLPipeline" if "zeros" in request.param else request.param
    if request.param == "no zeros":
        made(name).register_to_config(force_zeros_for_empty_prompt=False)
    yield name
    if request.param == "no zeros":
        made(name).register_to_config(force_zeros_for_empty_prompt=True)


def test_long_prompts_in_chunks(chunked: str) -> None:
    name = chunked
    given = chunks(name, [["a cat", "sits"], ["red", "sky"]]) | chunks(name, [["dog", "hat"], ["x", "y"]], "negative_")

    def reached(stack: str, **more: Any) -> torch.Tensor:
        return steps(name, stack, **without_texts(name, **given, **more))

    empty = {key: value.repeat(1, 2, 1) if value.ndim == 3 else value for key, value in nothing(name).items()}
    for stack in ("perpneg(3)", "cfg(3) | renoise()", "apg(3, against='null')"):
        wanted = reached(stack, null_embeds=empty)
        assert near(reached(stack), wanted)
        assert not near(reached("cfg(3)"), wanted, 1e-3)
    # A text in one chunk is followed by an empty one.
    following = embedded(name, ["sun", "sea"]), embedded(name, ["", ""])
    network: list[torch.Tensor] = texts_of(name, lambda: reached("perpneg(3)", extra_prompt=["sun", "sea"]))
    wanted = torch.cat([one["prompt_embeds"] for one in following], 1)
    assert all(any(near(row, one) for row in network[0]) for one in wanted)
    reached("icg(3)")


def test_lengths_that_are_no_number_of_chunks(chunked: str) -> None:
    name = chunked
    long = chunks(name, [["a cat", "sits"], ["red", "sky"]]) | chunks(name, [["dog", "hat"], ["x", "y"]], "negative_")
    given = {key: value[:, :25] if value.ndim == 3 else value for key, value in long.items()}
    steps(name, "icg(3)", **without_texts(name, **given))
    for stack in ("perpneg(3)", "cfg(3) | renoise()", "apg(3, against='null')"):
        if family(name).zeros(made(name)):  # which have any length
            steps(name, stack, **without_texts(name, **given))
            continue
        with pytest.raises(InputError, match=r"^'null' has encoder_hidden_states of shape \[16, .*; give null_embeds"):
            steps(name, stack, **without_texts(name, **given))
        with pytest.raises(InputError, match=r"^'null' has encoder_hidden_states of shape \[16, .*; give null_embeds"):
            steps(name, stack, **without_texts(name, **given, null_embeds=nothing(name)))


# --- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stack", ["perpneg(3)", "apg(3, against='null')", "cfg(3) | renoise()"])
@pytest.mark.parametrize(
    "name", ["StableDiffusionImg2ImgPipeline", "StableDiffusion3Pipeline", "FluxPipeline", "WanPipeline"]
)
def test_without_a_text_encoder_the_refusal_names_the_embeddings(name: str, stack: str) -> None:
    pipe = freed(name)
    given = embedded(name, PROMPTS) | embedded(name, NEGATIVES, "negative_")
    message = "^the empty prompt has to be encoded, and {} of {} (is|are) None; give embeddings: null_embeds"
    with pytest.raises(InputError, match=message.format("text_encoder.*", type(pipe).__name__)):
        gs.guide(pipe, stack)(**without_texts(name, **given))
    if name in ("StableDiffusion3Pipeline", "FluxPipeline"):  # one of several is there
        pipe.text_encoder, pipe.tokenizer = made(name).text_encoder, made(name).tokenizer
        with pytest.raises(InputError, match=message.format("text_encoder_2.*", type(pipe).__name__)):
            gs.guide(pipe, stack)(**without_texts(name, **given))
    if stack == "perpneg(3)":
        more = {"null_embeds": nothing(name), "extra_prompt": ["sun", ""]}
        with pytest.raises(InputError, match=r"^'sun' has to be encoded, and text_encoder.* None"):
            gs.guide(freed(name), stack)(**without_texts(name, **given, **more))


UNENCODED = [name for name in EMBEDDED if name not in ("AudioLDM2Pipeline", "StableDiffusionInstructPix2PixPipeline")]


@pytest.mark.parametrize("name", UNENCODED)
def test_what_the_pipeline_itself_would_encode_is_refused_likewise(name: str) -> None:
    """Its own negative where none is given, and its prompt as a text."""
    pipe, given = freed(name), embedded(name, PROMPTS)
    for stack in ("cfg(3)", "perpneg(3)", "cfg(3) | renoise()"):
        if not family(name).zeros(pipe):
            with pytest.raises(InputError, match=r"^the empty prompt has to be .* None; give embeddings: null_embeds"):
                gs.guide(pipe, stack)(**without_texts(name, **given))
        with pytest.raises(InputError, match=r"^'a cat' has to be encoded, and .* None; give prompt_embeds"):
            gs.guide(pipe, stack)(**arguments(name, 2, prompt=PROMPTS))
    with pytest.raises(InputError, match=r"^'sky' has to be encoded, and .* None; .* negative_prompt_embeds"):
        gs.guide(pipe, "cfg(3)")(**without_texts(name, **given, negative_prompt=["", "sky"]))
    gs.guide(pipe, "stack()")(**without_texts(name, **given))
    if name == "StableDiffusion3Pipeline":  # one of several is not there
        pipe = copy.copy(made(name))
        pipe.text_encoder = pipe.tokenizer = None
        with pytest.raises(InputError, match=r"^the empty prompt has to be .* text_encoder of .* is None; give emb"):
            gs.guide(pipe, "cfg(3)")(**without_texts(name, **given))
        pipe = freed(name)
        pipe.encode_prompt = made(name).encode_prompt  # of one's own, with an encoder elsewhere
        gs.guide(pipe, "cfg(3)")(**arguments(name, 2, prompt=PROMPTS))
        pipe = copy.copy(made(name))
        pipe.text_encoder_3 = pipe.tokenizer_3 = None  # which the pipeline does without
        gs.guide(pipe, "cfg(3)")(**arguments(name, 2, prompt=PROMPTS))


@pytest.mark.parametrize("name", [name for name in PADDED if name != "HiDreamImagePipeline"])
def test_the_pipelines_own_negative_is_as_long_as_the_embeddings(name: str) -> None:
    long = {"max_sequence_length": 24}
    given = embedded(name, PROMPTS, **long)
    alone = family(name).sequential  # where each has its own length
    for stack in ("cfg(3)", "cfg(3, against='null')", "perpneg(3)"):
        wanted = steps(name, stack, **arguments(name, 2, prompt=PROMPTS, **long))
        told = without_texts(name, **given) | {"max_sequence_length": 24 if alone else 16}
        told.pop("negative_prompt", None)
        assert near(steps(name, stack, **told), wanted, 1e-4), stack


@pytest.mark.parametrize(
    "name", ["StableDiffusionImg2ImgPipeline", "SanaPipeline", "LTXPipeline", "FluxPipeline", "Lumina2Pipeline"]
)
def test_an_empty_condition_of_another_length_is_named(name: str) -> None:
    null = {key: value[:, :3] if "pooled" not in key else value for key, value in nothing(name).items()}
    with pytest.raises(InputError, match=r"^null_embeds: prompt_embeds has rows of shape \[3, .*; give null_embeds"):
        gs.guide(made(name), "cfg(3)")(**without_texts(name, **embedded(name, PROMPTS), null_embeds=null))


@pytest.mark.parametrize("name", ["StableDiffusionXLPipeline", "Kandinsky3Pipeline"])
def test_zeros_need_no_text_encoder(name: str) -> None:
    pipe = freed(name)
    given = embedded(name, PROMPTS) | embedded(name, NEGATIVES, "negative_")
    for stack in ("perpneg(3)", "apg(3, against='null')"):
        seen = trajectory(pipe, gs.guide(pipe, stack), without_texts(name, **given))
        wanted = steps(name, stack, **without_texts(name, **given), null_embeds=nothing(name))
        assert near(seen, wanted)


def test_random_texts_without_a_text_encoder() -> None:
    name = "StableDiffusionXLPipeline"
    with pytest.raises(UnsupportedPipelineError, match="random tokens need a text encoder"):
        gs.guide(freed(name), "icg(3)")(**without_texts(name, **embedded(name, PROMPTS)))


def test_what_is_wrong_with_embeddings_is_one_line() -> None:
    name = "StableDiffusion3Pipeline"
    null, negatives = nothing(name), embedded(name, NEGATIVES, "negative_")

    def refused(message: str, stack: str = "perpneg(3)", **given: Any) -> None:
        with pytest.raises(InputError, match=message) as caught:
            gs.guide(made(name), stack)(**arguments(name, 2, prompt=PROMPTS, **given))
        assert "\n" not in str(caught.value)

    text = {"negative_prompt": NEGATIVES}
    refused("^null_embeds was given, and no rule of stack", "stack()", null_embeds=null)
    refused(r"^null_embeds was given, and no rule of cfg\(3", "cfg(3)", null_embeds=null, **text)
    refused("null_embeds: pooled_prompt_embeds is missing; .* needs prompt_em", null_embeds=null["prompt_embeds"])
    refused("has no pooled_embeds; did you mean 'pooled_prompt_embeds'", null_embeds=null | {"pooled_embeds": 1})
    refused("null_embeds: prompt_embeds has to be a tensor .*, got str", null_embeds=null | {"prompt_embeds": "x"})
    three = {key: value.repeat(3, *[1] * (value.ndim - 1)) for key, value in null.items()}
    refused("null_embeds: prompt_embeds has 3 rows for 2 prompts; give one for all, or one for each", null_embeds=three)
    short = null | {"prompt_embeds": null["prompt_embeds"][:, :5]}
    refused(r"'null' has encoder_hidden_states of shape \[5, 32\].*give null_embeds", null_embeds=short, **text)
    lists: dict[str, Any] = {key: [value, value] for key, value in negatives.items()}
    refused(r"^a list of negative embeddings was given, and no rule of cfg\(3", "cfg(3)", **lists)
    lists["negative_prompt_embeds"] = lists["negative_prompt_embeds"] * 2
    refused("each of several negatives needs all of its embeddings; got negative_prompt_embeds 4", **lists)
    del lists["negative_pooled_prompt_embeds"]
    refused("several negatives: negative_pooled_prompt_embeds is missing", **lists)
