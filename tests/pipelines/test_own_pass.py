"""Edits of the prompt's own pass: NAG, NASA and PLADIS against attention that is written by hand."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

import guidestack as gs
from guidestack.guidance.errors import GuidanceNotAppliedError, InputError, UnsupportedPipelineError
from guidestack.pipelines.families.lookup import denoisers_of
from guidestack.pipelines.families.record import FAMILIES

from .stock import trajectory
from .test_families import KNOWN, arguments, made
from .tiny import load

pytestmark = [
    pytest.mark.filterwarnings("ignore:this network was distilled"),
    pytest.mark.filterwarnings("ignore:.*use_reentrant"),
]

PROMPTS, NEGATIVES = ["a cat", "red", "sea"], ["dog", "blue", "land"]
STEPS, CLOSE = 3, 2e-5
Blend = Callable[[Tensor, Tensor], Tensor]


def seeded(count: int = 3) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(count)]


def call(pipe: Any, stack: Any, **more: Any) -> Tensor:
    given = {"prompt": PROMPTS, "num_inference_steps": STEPS, "output_type": "latent"}
    given["generator"] = seeded(len(given["prompt"]))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="a negative prompt was given")
        return gs.guide(pipe, stack)(**{**given, **more}).images  # type: ignore[no-any-return]


def close(one: Tensor, other: Tensor, tolerance: float = CLOSE) -> bool:
    return bool((one - other).abs().max() <= tolerance * other.abs().max())


# --- by hand: a processor that reads two texts, one row of the prompt's and one of the negative's ---------------------


def nag(scale: float, tau: float = 2.5, alpha: float = 0.25) -> Blend:
    def blend(z: Tensor, away: Tensor) -> Tensor:
        out = torch.empty_like(z)
        for row in range(z.shape[0]):
            for token in range(z.shape[1]):  # (B, N, heads * D)
                one = z[row, token] + (scale - 1) * (z[row, token] - away[row, token])
                ratio = one.abs().sum() / z[row, token].abs().sum()
                if ratio > tau:
                    one = one * tau / ratio
                out[row, token] = alpha * one + (1 - alpha) * z[row, token]
        return out

    return blend


def nasa(alpha: float) -> Blend:
    return lambda z, away: z - alpha * away


class TwoTexts:
    """Cross-attention of the prompt's text, blended with that of other texts for the same queries."""

    def __init__(self, other: Tensor, blend: Blend) -> None:
        self.other, self.blend = other, blend

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, attention_mask: Any = None, **more: Any
    ) -> Tensor:
        def one(text: Tensor) -> Tensor:
            q, k, v = attn.to_q(hidden_states), attn.to_k(text), attn.to_v(text)
            heads = [each.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for each in (q, k, v)]
            weights = (heads[0] @ heads[1].mT * heads[0].shape[-1] ** -0.5).softmax(-1)
            return (weights @ heads[2]).transpose(1, 2).flatten(2)

        z = self.blend(one(encoder_hidden_states), one(self.other))
        return attn.to_out[1](attn.to_out[0](z))  # type: ignore[no-any-return]


@contextmanager
def by_hand(pipe: Any, blend: Blend, negatives: list[str], only: str = "") -> Iterator[Any]:
    with torch.no_grad():
        other = pipe.encode_prompt(negatives, "cpu", 1, False)[0]
    unet = pipe.unet
    before = unet.attn_processors
    unet.set_attn_processor(
        {
            name: TwoTexts(other, blend) if "attn2" in name and name.startswith(only) else processor
            for name, processor in before.items()
        }
    )
    try:
        yield pipe
    finally:
        unet.set_attn_processor(before)


@pytest.mark.parametrize(
    ("rule", "blend", "only"),
    [
        (gs.NAG(4), nag(4), ""),
        (gs.NAG(9, tau=1.1, alpha=0.8), nag(9, 1.1, 0.8), ""),
        (gs.NAG(4, blocks="mid"), nag(4), "mid_block"),
        (gs.NASA(0.4), nasa(0.4), ""),
    ],
    ids=lambda value: value if isinstance(value, str) else "by hand",
)
def test_the_attention_of_two_texts_by_hand(pipe: Any, rule: gs.Rule, blend: Blend, only: str) -> None:
    seen = call(pipe, rule, negative_prompt=NEGATIVES)
    with by_hand(pipe, blend, NEGATIVES, only):
        wanted = call(pipe, "stack()")
    assert close(seen, wanted)
    assert not close(seen, call(pipe, "stack()"), 1e-3)
    # A guided rule beside it reads the prompt's answer edited, and the contrast's as it is.
    both = call(pipe, rule | gs.CFG(3), negative_prompt=NEGATIVES)
    weak = copy.deepcopy(pipe.unet)
    with by_hand(pipe, blend, NEGATIVES, only):
        guided = gs.guide(pipe, gs.CFG(3, against="negative@plain"), networks={"plain": weak})
        wanted = guided(PROMPTS, negative_prompt=NEGATIVES, num_inference_steps=STEPS, output_type="latent",
                        generator=seeded()).images  # fmt: skip
    assert close(both, wanted)


def test_it_costs_one_evaluation_and_nothing_is_left(pipe: Any) -> None:
    before = {name: type(one) for name, one in pipe.unet.attn_processors.items()}
    guided = gs.guide(pipe, "nag(4)")
    guided(PROMPTS, negative_prompt=NEGATIVES, num_inference_steps=STEPS, output_type="latent", generator=seeded())
    assert guided.report.evaluations == [STEPS] * 3
    assert guided.report.calls == STEPS
    assert {name: type(one) for name, one in pipe.unet.attn_processors.items()} == before
    assert torch.equal(call(pipe, "stack()"), call(pipe, "stack()"))
    for module in pipe.unet.modules():
        assert "_compiled_call_impl" not in vars(module)


def test_the_limits(pipe: Any) -> None:
    plain = call(pipe, "stack()")
    for stack in ("nag(1)", "nag(5, alpha=0)", "nasa(0)", "pladis(0)"):
        assert torch.equal(call(pipe, stack, negative_prompt=NEGATIVES), plain)
    assert close(call(pipe, "nag(5)", negative_prompt=PROMPTS), plain)  # the prompt as the negative changes nothing
    # With all of the guided output and no bound it is scaled NASA: (1 + phi)(Z+ - phi/(1 + phi) Z-).
    seen = call(pipe, "nag(3, tau=1e6, alpha=1)", negative_prompt=NEGATIVES)
    with by_hand(pipe, lambda z, away: 3 * z - 2 * away, NEGATIVES):
        assert close(seen, call(pipe, "stack()"))
    # Without a negative prompt it guides away from the empty one.
    with by_hand(pipe, nag(5), [""] * 3):
        wanted = call(pipe, "stack()")
    assert close(call(pipe, "nag(5)"), wanted)


def entmax(scores: Tensor) -> Tensor:
    """p = [z/2 - t]_+^2 with sum 1, t by bisection."""
    z = scores / 2
    low, high = z.amax(-1, keepdim=True) - 1, z.amax(-1, keepdim=True)
    for _ in range(60):
        middle = (low + high) / 2
        too_much = ((z - middle).clamp(min=0) ** 2).sum(-1, keepdim=True) > 1
        low, high = torch.where(too_much, middle, low), torch.where(too_much, high, middle)
    return (z - low).clamp(min=0) ** 2


def test_pladis_by_hand(pipe: Any) -> None:
    seen = call(pipe, "pladis(2)")

    class Sparse(TwoTexts):
        def __call__(
            self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, *rest: Any, **more: Any
        ) -> Tensor:
            sent = [attn.to_q(hidden_states), attn.to_k(encoder_hidden_states), attn.to_v(encoder_hidden_states)]
            q, k, v = (each.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for each in sent)
            scores = q @ k.mT * q.shape[-1] ** -0.5
            weights = 2 * entmax(scores) - scores.softmax(-1)
            return attn.to_out[1](attn.to_out[0]((weights @ v).transpose(1, 2).flatten(2)))  # type: ignore[no-any-return]

    before = pipe.unet.attn_processors
    pipe.unet.set_attn_processor(
        {name: Sparse(torch.empty(0), nasa(0)) if "attn2" in name else one for name, one in before.items()}
    )
    wanted = call(pipe, "stack()")
    pipe.unet.set_attn_processor(before)
    assert close(seen, wanted, 1e-4)
    assert not close(seen, call(pipe, "stack()"), 1e-3)


def test_a_batch_is_its_samples_and_windows_close(pipe: Any) -> None:
    whole = call(pipe, "nag(4)", negative_prompt=NEGATIVES)
    for place in range(3):
        given = {"prompt": [PROMPTS[place]], "negative_prompt": [NEGATIVES[place]], "generator": [seeded()[place]]}
        assert close(call(pipe, "nag(4)", **given)[0], whole[place])
    pieces = gs.guide(pipe, "nag(4) | cfg(3)", max_rows=2)
    given = {"num_inference_steps": STEPS, "output_type": "latent", "generator": seeded()}
    seen = pieces(PROMPTS, negative_prompt=NEGATIVES, **given).images
    assert close(seen, call(pipe, "nag(4) | cfg(3)", negative_prompt=NEGATIVES))
    several = call(
        pipe, "nag(4)", prompt=["a cat"], negative_prompt=["dog"], num_images_per_prompt=2, generator=seeded(2)
    )
    assert close(several[:1], whole[:1])
    closed = call(pipe, "during(nag(4), sigma=(1e5, 1e6))", negative_prompt=NEGATIVES)
    assert torch.equal(closed, call(pipe, "stack()"))
    # A rule that asks fewer rows of the contrast asks as many of the prompt, edited.
    stops = gs.guide(pipe, "nag(4) | prefix(cfg(3), 1)")
    stops(PROMPTS, negative_prompt=NEGATIVES, num_inference_steps=STEPS, output_type="latent", generator=seeded())
    assert stops.report.evaluations == [STEPS + 1] * 3


# --- every family ----------------------------------------------------------------------------------------------------


OTHERWISE = ("SanaPipeline", "Lumina2Pipeline")
"""They put an instruction before the prompt and not before the negative one."""


def texts(name: str) -> str:
    """Why the family cannot have it, or ""."""
    pipe = made(name)
    try:
        gs.guide(pipe, "nag(3)")
    except UnsupportedPipelineError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", KNOWN)
def test_every_family(name: str) -> None:
    pipe = made(name)
    if reason := texts(name):
        assert any(one in reason for one in ("no attention to a text", "encodes none", "for each row separately"))
        return
    if name.startswith("QwenImage"):
        with pytest.raises(InputError, match="tokens and the prompt of"):
            gs.guide(pipe, "nag(3)")(**arguments(name, 2))
        return

    def run(stack: str, negative: bool = True, **more: Any) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            guided = gs.guide(pipe, stack)
            found = trajectory(pipe, guided, arguments(name, 2, negative=negative, **more))
        assert guided.report.evaluations == [len(guided.report.steps) * (1 + ("cfg" in stack))] * 2
        return found

    plain = run("stack()")
    seen = run("nag(4, alpha=0.9)")
    assert not close(seen, plain, 1e-5)
    given = arguments(name, 2)
    if isinstance(given.get("prompt"), list) and "negative_prompt" in given and name not in OTHERWISE:
        assert close(run("nag(4, alpha=0.9)", negative_prompt=given["prompt"]), plain, 1e-3)
    one = trajectory(pipe, gs.guide(pipe, "nag(4, alpha=0.9)"), arguments(name, 1))
    assert close(seen[:, :1], one[:, :1], 1e-2)
    assert not close(run("nag(4, alpha=0.9) | cfg(3)"), run("stack() | cfg(3)"), 1e-5)


# --- what cannot be --------------------------------------------------------------------------------------------------


def test_what_cannot_be_is_one_line_at_construction(pipe: Any, dit: Any) -> None:
    for subject, stack, message in (
        (dit, "nag(3)", "has no attention to a text"),
        (dit, "pladis(2)", "has no attention to a text"),
        (pipe, "nag(3, blocks='left')", "no block 'left'"),
        (load("FluxPipeline").make(), "pladis(2)", "is for cross-attention"),
    ):
        with pytest.raises(UnsupportedPipelineError, match=message) as caught:
            gs.guide(subject, stack)
        assert "\n" not in str(caught.value)
    with pytest.raises(UnsupportedPipelineError, match=r"asks for nag\("):
        gs.guide(pipe, "nag(3) | cfg(2)", rows="pipeline")
    assert denoisers_of(pipe, FAMILIES["StableDiffusionPipeline"])


def test_sliced_attention_is_refused(new_pipe: Any) -> None:
    pipe = new_pipe()
    pipe.enable_attention_slicing(1)
    with pytest.raises(GuidanceNotAppliedError, match="switch attention slicing off"):
        call(pipe, "nag(3)")
