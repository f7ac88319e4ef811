"""Importances by gradients of attention against brute force, the masks made of them, and a picture kept outside."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import guidestack as gs
from guidestack.guidance.errors import GuidanceNotAppliedError, InputError, UnsupportedPipelineError
from guidestack.guidance.keyed import keyed, normal
from guidestack.pipelines.attention_masks import KeepOutside, importance, latent_mask, places
from guidestack.samplers import grid

from ..conftest import make_stable_diffusion
from .tiny import load

PROMPT = "a cat on b"


@pytest.fixture(scope="module")
def pipe() -> Any:
    found = make_stable_diffusion()
    found.set_progress_bar_config(disable=True)
    return found


class Kept:
    """A processor of one's own that keeps the weights of its attention, written by hand."""

    def __init__(self) -> None:
        self.weights: Tensor | None = None

    def __call__(self, attn: Any, hidden: Tensor, encoder_hidden_states: Tensor | None = None, **rest: Any) -> Tensor:
        text = hidden if encoder_hidden_states is None else encoder_hidden_states

        def split(one: Tensor) -> Tensor:
            return one.unflatten(2, (attn.heads, -1)).transpose(1, 2)

        q, k, v = split(attn.to_q(hidden)), split(attn.to_k(text)), split(attn.to_v(text))
        weights = (q @ k.mT * attn.scale).softmax(-1)
        if encoder_hidden_states is not None:
            self.weights = weights
        return attn.to_out[1](attn.to_out[0]((weights @ v).transpose(1, 2).flatten(2)))  # type: ignore[no-any-return]


def inputs(batch: int = 2) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(3)
    return torch.randn(batch, 4, 8, 8, generator=random), torch.randn(batch, 16, 16, generator=random)


def asked(pipe: Any, x: Tensor, text: Tensor) -> Any:
    def call(copies: int) -> Tensor:
        given = x.repeat_interleave(copies, 0), text.repeat_interleave(copies, 0)
        return pipe.unet(given[0], 500, given[1], return_dict=False)[0]  # type: ignore[no-any-return]

    return call


TOKENS = [[3, 5, 6], [4]]


@pytest.fixture(scope="module")
def by_hand(pipe: Any) -> dict[str, list[Tensor]]:
    """The formula, one number of the answer after the other, for each part the tensors of all attentions."""
    x, text = inputs()
    before = pipe.unet.attn_processors
    kept = {name: Kept() for name in before}
    try:
        pipe.unet.set_attn_processor(dict(kept))
        with torch.enable_grad():
            z = pipe.unet(x, 500, text.requires_grad_(), return_dict=False)[0]
        weights = [one.weights for name, one in kept.items() if "attn2" in name]
        found = {part: [torch.zeros(2, 4, 8, 8) for _ in weights] for part in ("abs", "relu")}
        for b in range(2):
            for c, i, j in np.ndindex(4, 8, 8):
                slopes = torch.autograd.grad(z[b, c, i, j], weights, retain_graph=True)
                for place, (a, slope) in enumerate(zip(weights, slopes, strict=True)):
                    ours, slope = a[b, :, :, TOKENS[b]].detach(), slope[b, :, :, TOKENS[b]]
                    found["abs"][place][b, c, i, j] = (ours * slope.abs()).sum()
                    found["relu"][place][b, c, i, j] = (ours * slope.clamp(min=0)).sum()
    finally:
        pipe.unet.set_attn_processor(before)
    return found


@pytest.mark.parametrize("part", ["abs", "relu"])
def test_an_importance_is_its_formula_number_by_number(pipe: Any, part: str, by_hand: dict[str, list[Tensor]]) -> None:
    wanted = sorted(by_hand[part], key=lambda one: float(one.sum()))
    x, text = inputs()
    found = importance(pipe.unet, asked(pipe, x, text), TOKENS, part, copies=24)  # the last pass is not full
    given = sorted(found.values(), key=lambda one: float(one.sum()))
    assert len(given) == len(wanted)
    for mine, theirs in zip(given, wanted, strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-3, atol=float(theirs.max()) * 1e-5)


def test_a_batch_equals_its_samples_and_nothing_is_left_behind(pipe: Any) -> None:
    x, text = inputs()
    both = importance(pipe.unet, asked(pipe, x, text), TOKENS, every=2, copies=64)
    alone = importance(pipe.unet, asked(pipe, x[1:], text[1:]), TOKENS[1:], every=2, copies=16)
    for name, one in both.items():
        assert torch.allclose(one[1:], alone[name], rtol=1e-3, atol=float(one.max()) * 1e-5)
    assert all("_compiled_call_impl" not in vars(part) for part in pipe.unet.modules())
    assert all(one.grad is None for one in pipe.unet.parameters())
    whole = importance(pipe.unet, asked(pipe, x[1:], text[1:]), TOKENS[1:], copies=64)
    for name, one in whole.items():  # each second number, and its neighbours like it
        assert torch.allclose(alone[name][:, :, 1::2, 1::2], one[:, :, 1::2, 1::2], rtol=1e-3, atol=1e-9)
        assert torch.equal(alone[name][:, :, ::2, ::2], alone[name][:, :, 1::2, 1::2])


def test_a_mask_is_what_stands_out_in_every_block_for_one_of_the_subjects() -> None:
    random = torch.Generator().manual_seed(1)
    subjects = [{name: torch.rand(2, 3, 6, 6, generator=random) ** 4 for name in "ab"} for _ in range(2)]
    found = latent_mask(subjects, deviations=0.5, grown=1)
    for b, c, i, j in np.ndindex(2, 3, 6, 6):
        blocks = []
        for name in "ab":
            either = False
            for subject in subjects:
                plane = subject[name][b, c].numpy()
                grown = np.array(
                    [[plane[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2].max() for x in range(6)] for y in range(6)]
                )
                either |= bool(grown[i, j] > grown.mean() + 0.5 * grown.std())
            blocks.append(either)
        assert bool(found[b, c, i, j]) == all(blocks)


class Watched:
    """A callback around another one, which keeps what it was given and what it returned."""

    def __init__(self, inner: KeepOutside) -> None:
        self.inner, self.seen = inner, dict[int, tuple[Tensor, Tensor, Any]]()

    def __call__(self, pipe: Any, index: int, time: Any, given: dict[str, Any]) -> dict[str, Any]:
        before = given["latents"]
        output = self.inner(pipe, index, time, given)
        if output:
            self.seen[index] = before, output["latents"], grid(pipe.scheduler).levels[index + 1]
        return output


@pytest.mark.parametrize("stack", ["stack()", "cfg(3)"])
def test_outside_of_the_mask_the_latents_are_the_references_at_that_level(pipe: Any, stack: str) -> None:
    reference = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(9))
    keep = KeepOutside(reference, PROMPT, ["cat", "b"], at=(1, 2), every=4, copies=16, seeds=[7, 8])
    watch, given = Watched(keep), keep.on(pipe)
    guided = gs.guide(pipe, stack)
    seeds = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    given = {**given, "callback_on_step_end": watch, "output_type": "latent", "num_inference_steps": 4}
    guided([PROMPT] * 2, generator=seeds, **given)
    assert sorted(keep.masks) == sorted(watch.seen) == [1, 2]
    assert guided.report is not None
    assert guided.report.evaluations == [4 * (2 if stack != "stack()" else 1)] * 2
    noise = torch.stack([normal([keyed(seed, "reference")], (4, 8, 8), torch.device("cpu"))[0] for seed in (7, 8)])
    for index, (before, after, level) in watch.seen.items():
        mask = keep.masks[index]
        assert 0 < mask.float().mean() < 1
        wanted = level.alpha * reference + level.sigma * noise
        assert torch.equal(after[mask], before[mask])
        assert torch.allclose(after[~mask], wanted.expand_as(after)[~mask], atol=1e-6)


def test_a_picture_of_the_size_is_encoded_and_xl_is_told_all_that_its_network_takes() -> None:
    pipe = load("StableDiffusionXLPipeline").make()
    pipe.set_progress_bar_config(disable=True)
    side = pipe.unet.config.sample_size * pipe.vae_scale_factor
    picture = Image.new("RGB", (side, side), "red")
    keep = KeepOutside(picture, PROMPT, ["cat"], at=(0,), every=4, copies=16)
    out = gs.guide(pipe, "cfg(3)")(PROMPT, num_inference_steps=2, output_type="latent", **keep.on(pipe)).images
    assert torch.isfinite(out).all()
    assert keep.masks[0].shape == out.shape


def test_the_places_of_a_subject(pipe: Any) -> None:
    assert places(pipe.tokenizer, "a cat on a mat", "cat") == [2, 3, 4]
    assert places(pipe.tokenizer, "a cat on a mat", "a") == [1, 7]
    with pytest.raises(InputError, match="'dog' does not stand in the prompt 'a cat'"):
        places(pipe.tokenizer, "a cat", "dog")


def test_what_cannot_be_is_one_line(pipe: Any) -> None:
    with pytest.raises(InputError, match=r"subjects are words of the prompt, such as \['cat face'\]; got 'cat'"):
        KeepOutside(None, PROMPT, "cat")
    with pytest.raises(InputError, match="every must be a whole number"):
        KeepOutside(None, PROMPT, ["cat"], every=0)
    x, text = inputs()
    with pytest.raises(InputError, match="part is 'abs' or 'relu'; got 'square'"):
        importance(pipe.unet, asked(pipe, x, text), TOKENS, "square")
    with torch.inference_mode(), pytest.raises(InputError, match="gradients cannot be taken"):
        importance(pipe.unet, asked(pipe, x, text), TOKENS)
    with pytest.raises(GuidanceNotAppliedError, match="did not reach its cross-attention"):
        importance(pipe.unet, lambda copies: x, TOKENS)
    for at, message in (((3,), "is the last one"), ((0,), "give a picture of the size")):
        keep = KeepOutside(torch.zeros(1, 4, 4, 4), PROMPT, ["cat"], at=at, every=8)
        with pytest.raises(InputError, match=message):
            gs.guide(pipe, "stack()")(PROMPT, num_inference_steps=4, output_type="latent", **keep.on(pipe))
    keep = KeepOutside(None, [PROMPT] * 3, ["cat"], at=(0,))
    with pytest.raises(InputError, match="prompt= has 3 prompts, and the call makes 1"):
        gs.guide(pipe, "stack()")(PROMPT, num_inference_steps=4, output_type="latent", **keep.on(pipe))
    with pytest.raises(UnsupportedPipelineError, match="has no UNet"):
        keep.on(load("FluxPipeline").make())
