"""Token merging in networks: the stock pipeline with attention patched by hand, every network, beside other edits."""

from __future__ import annotations

import copy
import functools
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

import guidestack as gs
from guidestack.guidance.errors import UnsupportedPipelineError
from guidestack.pipelines.edits import architecture

from .. import token_merging as by_hand
from .stock import trajectory
from .test_edits import NETWORKS
from .test_families import arguments, made
from .tiny import load

pytestmark = [
    pytest.mark.filterwarnings("ignore:this network was distilled"),
    pytest.mark.filterwarnings("ignore:.*use_reentrant"),
]

PROMPTS, NEGATIVES = ["a cat", "red"], ["dog", "blue"]
STEPS, CLOSE = 4, 2e-5


def seeded(count: int = 2) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(count)]


def call(pipe: Any, stack: Any, networks: Any = None, **more: Any) -> Tensor:
    given = {"prompt": PROMPTS, "negative_prompt": NEGATIVES, "num_inference_steps": STEPS, "output_type": "latent"}
    given["generator"] = seeded(len(more.get("prompt", PROMPTS)))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="a negative prompt was given")
        return gs.guide(pipe, stack, networks=networks)(**{**given, **more}).images  # type: ignore[no-any-return]


def close(one: Tensor, other: Tensor, tolerance: float = CLOSE) -> bool:
    return bool((one - other).abs().max() <= tolerance * other.abs().max())


class Merged:
    """A stock UNet whose blocks merge by hand, for a call with the rows [unconditional, conditional]."""

    def __init__(self, pipe: Any, ratio: float, prune: int = 2, only: str = "") -> None:
        self.pipe, self.ratio, self.prune, self.only = pipe, ratio, prune, only
        self.step, self.important = 0, torch.empty(0)
        self.lengths: list[int] = []
        self.tokens = torch.empty(0)

    @contextmanager
    def patched(self) -> Iterator[Any]:
        unet, handles = self.pipe.unet, []
        blocks = [(name, module) for name, module in unet.named_modules() if hasattr(module, "attn1")]
        chosen = [module for name, module in blocks if name.startswith(self.only)]
        for block in chosen:
            handles.append(block.register_forward_pre_hook(self._note))
            attention = block.attn1
            attention.forward = functools.partial(self._attend, attention.forward)
        handles.append(unet.register_forward_hook(self._after))
        try:
            yield self.pipe
        finally:
            for handle in handles:
                handle.remove()
            for block in chosen:
                del block.attn1.forward

    def _note(self, module: Any, args: Any) -> None:
        self.tokens = args[0]

    def _attend(self, original: Callable[..., Tensor], hidden: Tensor, **more: Any) -> Tensor:
        rows, out = len(hidden) // 2, []
        for row, tokens in enumerate(self.tokens):
            sample, count = row % rows, len(tokens)
            size = round(count**0.5)

            def at(places: Tensor, size: int = size) -> Tensor:
                each = len(places) // size
                return places.reshape(size, each, size, each).mean((1, 3))

            by = at(self.important[sample]) if self.step >= max(self.prune, 1) else None
            drawn = at(by_hand.drawn(sample, self.step - 1, (8, 8)))
            found = by_hand.groups(tokens, drawn, by, self.ratio)
            merged = by_hand.apart(hidden[row], found, self.step >= self.prune)
            self.lengths.append(len(merged))
            out.append(by_hand.back(original(merged[None], **more)[0], found, count))
        return torch.stack(out)

    def _after(self, module: Any, args: Any, output: Any) -> None:
        u, c = output[0].chunk(2)
        self.important = (c - u).abs().mean(1)
        self.step += 1


@pytest.mark.parametrize(("ratio", "prune", "only"), [(0.5, 2, ""), (0.7, 0, "mid_block")])
def test_the_stock_pipeline_with_attention_merged_by_hand(pipe: Any, ratio: float, prune: int, only: str) -> None:
    hand = Merged(pipe, ratio, prune, only)
    with hand.patched():
        wanted = pipe(PROMPTS, negative_prompt=NEGATIVES, guidance_scale=3.0, num_inference_steps=STEPS,
                      output_type="latent", generator=seeded()).images  # fmt: skip
    assert {16 - int(16 * ratio)} == set(hand.lengths)
    blocks = {"blocks": "mid"} if only else {}
    rule = gs.TokenMerge(gs.CFG(3), ratio, prune, **blocks)
    assert close(call(pipe, rule), wanted)
    assert not close(call(pipe, "cfg(3)"), wanted, 1e-3)


def test_it_costs_the_evaluations_of_its_rule_and_nothing_is_left(pipe: Any) -> None:
    guided, lengths = gs.guide(pipe, "tome(cfg(3), 0.5)"), set()
    attention = next(module for name, module in pipe.unet.named_modules() if name.endswith("attn1"))
    handle = attention.to_q.register_forward_pre_hook(lambda module, args: lengths.add(args[0].shape[1]))
    guided(PROMPTS, num_inference_steps=STEPS, output_type="latent", generator=seeded())
    handle.remove()
    assert guided.report.evaluations == [2 * STEPS] * 2
    assert guided.report.calls == STEPS
    assert lengths == {8}
    for module in pipe.unet.modules():
        assert "_compiled_call_impl" not in vars(module)
    assert torch.equal(call(pipe, "tome(cfg(3), 0)"), call(pipe, "cfg(3)"))


def test_a_batch_is_its_samples_in_pieces_too(pipe: Any) -> None:
    whole = call(pipe, "tome(cfg(3), 0.5)")
    for place in range(2):
        given = {"prompt": [PROMPTS[place]], "negative_prompt": [NEGATIVES[place]], "generator": [seeded()[place]]}
        assert close(call(pipe, "tome(cfg(3), 0.5)", **given)[0], whole[place])
    pieces = gs.guide(pipe, "tome(cfg(3), 0.5)", max_rows=1)
    seen = pieces(PROMPTS, negative_prompt=NEGATIVES, num_inference_steps=STEPS, output_type="latent",
                  generator=seeded()).images  # fmt: skip
    assert close(seen, whole)
    stops = call(pipe, "tome(prefix(cfg(3), 2), 0.5)")  # afterwards the last importance counts
    assert not close(stops, whole, 1e-3)
    closed = call(pipe, "during(tome(cfg(3), 0.5), sigma=(1e5, 1e6))")
    assert torch.equal(closed, call(pipe, "stack()"))


def test_a_compiled_network_and_other_threads(new_pipe: Callable[[], Any]) -> None:
    """A graph compiled before is left aside for merged passes, and who uses the network meanwhile notices nothing."""
    pipe = new_pipe()
    wanted, seen, done = call(pipe, "tome(cfg(3), 0.5)"), [], threading.Event()
    given = torch.randn(2, 4, 8, 8), 5, torch.randn(2, 16, 16)

    @torch.no_grad()
    def meanwhile() -> None:
        while not done.is_set():
            seen.append(pipe.unet(*given)[0])

    plain = pipe.unet(*given)[0]
    other = threading.Thread(target=meanwhile)
    other.start()
    assert close(call(pipe, "tome(cfg(3), 0.5)"), wanted)
    done.set()
    other.join()
    assert seen
    assert all(torch.equal(one, plain) for one in seen)
    pipe.unet.compile(backend="eager")
    assert close(call(pipe, "tome(cfg(3), 0.5)"), wanted)


def test_the_finest_blocks_are_meant(pipe: Any) -> None:
    assert architecture(pipe.unet).finest == "down.1,mid,up.0"  # the last stage halves nothing
    unet = load("StableDiffusionXLPipeline").make().unet
    names = architecture(unet).names
    assert set(architecture(unet).finest.split(",")) <= set(names)
    from diffusers import UNet2DConditionModel

    given = {"norm_num_groups": 4, "cross_attention_dim": 8, "attention_head_dim": 2, "layers_per_block": 1}
    deep = UNet2DConditionModel(8, block_out_channels=(4, 8), down_block_types=("CrossAttnDownBlock2D",) * 2,
                                up_block_types=("CrossAttnUpBlock2D",) * 2, **given)  # fmt: skip
    assert architecture(deep).names == ["down.0", "down.1", "mid", "up.0", "up.1"]
    assert architecture(deep).finest == "down.0,up.1"


def test_beside_other_edits_and_networks(pipe: Any) -> None:
    """A pass does not merge the blocks whose tokens its own perturbation changes."""
    lengths: list[tuple[str, int]] = []
    handles = [
        block.attn1.to_v.register_forward_pre_hook(lambda _, args, name=name: lengths.append((name, args[0].shape[1])))
        for name, block in pipe.unet.named_modules()
        if hasattr(block, "attn1")
    ]
    call(pipe, "tome(pag(2, blocks='mid'), 0.5)", num_inference_steps=1)
    for handle in handles:
        handle.remove()
    assert {seen for name, seen in lengths if name.startswith("mid")} == {8, 16}
    assert {seen for name, seen in lengths if not name.startswith("mid")} == {8}
    plain = copy.deepcopy(pipe.unet)

    def perturbed(stack: str) -> Tensor:
        return call(pipe, stack, networks={"plain": plain})

    nag = call(pipe, "tome(nag(4) | cfg(3), 0.5)")
    assert not close(nag, call(pipe, "tome(cfg(3), 0.5)"), 1e-3)
    # A second network merges, too: one with the same weights answers as the pipeline's own.
    wanted = call(pipe, "tome(cfg(3, against='negative'), 0.5)")
    assert close(perturbed("tome(cfg(3, against='negative@plain'), 0.5)"), wanted)
    assert torch.equal(perturbed("tome(cfg(3, against='positive@plain'), 0)"), call(pipe, "stack()"))


MERGED = {
    "DiTTransformer2DModel", "PixArtTransformer2DModel", "SD3Transformer2DModel", "AuraFlowTransformer2DModel",
    "SanaTransformer2DModel", "UNet2DConditionModel", "AudioLDM2UNet2DConditionModel",
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network(name: str) -> None:
    pipe = made(name)
    network = type(getattr(pipe, "unet", None) or pipe.transformer).__name__
    if network not in MERGED:
        with pytest.raises(UnsupportedPipelineError, match=r"cannot be merged|of no kind") as caught:
            gs.guide(pipe, "tome(stack(), 0.5)")
        assert "\n" not in str(caught.value)
        return
    guided = gs.guide(pipe, "tome(stack(), 0.5)")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        seen = trajectory(pipe, guided, arguments(name, 2))
        assert guided.report.evaluations == [len(guided.report.steps)] * 2
        plain = trajectory(pipe, gs.guide(pipe, "stack()"), arguments(name, 2))
        one = trajectory(pipe, gs.guide(pipe, "tome(stack(), 0.5)"), arguments(name, 1))
    assert not close(seen, plain, 1e-5)
    assert close(seen[:, :1], one[:, :1], 1e-2)


def test_what_cannot_be_is_one_line_at_construction(pipe: Any) -> None:
    for subject, stack, message in (
        (pipe, "tome(cfg(3), 0.5, blocks='left')", "no block 'left'"),
        (load("FluxPipeline").make(), "tome(stack(), 0.5)", "cannot be merged; tome is for attention"),
        (load("AuraFlowPipeline").make(), "tome(stack(), 0.5, blocks='single.0')", "block 'single.0' of AuraFlow"),
        (load("StableDiffusion3Pipeline").make(), "tome(nag(3), 0.5)", "nag and tome both change the one attention"),
    ):
        with pytest.raises(UnsupportedPipelineError, match=message) as caught:
            gs.guide(subject, stack)
        assert "\n" not in str(caught.value)
    with pytest.raises(UnsupportedPipelineError, match=r"asks for tome\("):
        gs.guide(pipe, "tome(cfg(3), 0.5)", rows="pipeline")
