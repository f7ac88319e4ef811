"""Edits of the network: in which networks, which tokens and blocks, whose, and only for one pass."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import guidestack as gs
from guidestack.guidance.errors import GuidanceNotAppliedError, UnsupportedPipelineError
from guidestack.guidance.keyed import keyed
from guidestack.guidance.query import Perturbation
from guidestack.pipelines.edits import architecture, check, edited
from guidestack.pipelines.edits.attention import Product, alone, blurred
from guidestack.pipelines.edits.edit import _left_out
from guidestack.pipelines.families.lookup import denoisers_of
from guidestack.pipelines.families.record import FAMILIES

from .left import state
from .stock import trajectory
from .test_families import BATCH, KNOWN, arguments, made

pytestmark = [
    pytest.mark.filterwarnings("ignore:this network was distilled"),
    pytest.mark.filterwarnings("ignore:a negative prompt was given, and no rule"),
]

BLOCKS = {
    "UNet2DConditionModel": "down.1, mid, up.0",
    "AudioLDM2UNet2DConditionModel": "down.1, mid, up.0",
    "Kandinsky3UNet": "",
    "SD3Transformer2DModel": "0 to 1",
    "MochiTransformer3DModel": "0 to 1",
    "HunyuanDiT2DModel": "0 to 1",
    "FluxTransformer2DModel": "0, single.0",
    "Flux2Transformer2DModel": "0, single.0",
    "ChromaTransformer2DModel": "0, single.0",
    "AuraFlowTransformer2DModel": "0, single.0",
    "HiDreamImageTransformer2DModel": "0, single.0",
    "HunyuanVideoTransformer3DModel": "0, single.0",
}
"""What the blocks of the tiny networks are called; those of the others "0"."""


def network(name: str) -> nn.Module:
    pipe = made(name)
    found: nn.Module = denoisers_of(pipe, FAMILIES[type(pipe).__name__])[0]
    return found


NETWORKS = list({type(network(name)).__name__: name for name in reversed(KNOWN)}.values())
"""A pipeline for each class of denoiser."""
BLOCKLESS = [name for name in NETWORKS if name.startswith("Kandinsky3")]
SMALL = Perturbation("identity"), Perturbation("blur", math.inf), Perturbation("blur", 0.7), Perturbation("skip")
EDITS = [*SMALL, Perturbation("drop", 0.5), Perturbation("shuffle"), Perturbation("identity", blocks="0")]


class Called:
    """A denoiser as its pipeline calls it, for a batch."""

    def __init__(self, name: str) -> None:
        self.module = network(name)
        self.args: tuple[Any, ...] = ()
        self.kwargs: dict[str, Any] = {}

        def note(module: nn.Module, args: Any, kwargs: Any) -> None:
            self.args, self.kwargs = copy.deepcopy((args, kwargs))

        handle = self.module.register_forward_pre_hook(note, with_kwargs=True)
        gs.guide(made(name), "stack()")(**arguments(name, num_inference_steps=2))
        handle.remove()

    @property
    def sample(self) -> Any:
        """The noisy samples of the call."""
        return self.args[0] if self.args else next(iter(self.kwargs.values()))

    def __call__(self, only: int | None = None) -> Tensor:
        """What it answers; with other noise in every sample but `only`."""
        sample = copy.deepcopy(self.sample)
        if only is not None:
            for row in set(range(BATCH)) - {only}:
                sample[row].copy_(sample[row].flip(-1) * 1.3)
        return self.told(sample)

    def told(self, sample: Any) -> Tensor:
        """What it answers to other samples."""
        args, kwargs = copy.deepcopy((self.args, self.kwargs))
        if args:
            args = (sample, *args[1:])
        else:
            kwargs[next(iter(kwargs))] = sample
        with torch.no_grad():
            output = self.module(*args, **kwargs)[0]
        return torch.stack(list(output)) if isinstance(output, list) else output


@cache
def called(name: str) -> Called:
    return Called(name)


def seeds(rows: int = BATCH) -> list[torch.Generator]:
    return [keyed(row, 0, "an edit") for row in range(rows)]


def under(name: str, edit: Perturbation, only: int | None = None) -> Tensor:
    check(network(name), edit)
    with edited(network(name), edit, seeds()):
        return called(name)(only)


@pytest.mark.parametrize("name", NETWORKS)
def test_blocks_have_names(name: str) -> None:
    found = architecture(network(name))
    assert (found.listed if found.blocks else "") == BLOCKS.get(type(network(name)).__name__, "0")
    assert len({block.name for block in found.blocks}) == len(found.blocks)


@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in BLOCKLESS])
def test_every_edit_of_every_network(name: str) -> None:
    """It changes each row, whatever the others are, for one pass, in the same way again, and leaves nothing behind."""
    base, before = called(name)(), state(made(name))
    largest = base.abs().max()
    first = architecture(network(name)).blocks[0].name
    for edit in [Perturbation(one.kind, one.amount, first if one.blocks else 0) for one in EDITS]:
        if edit.kind == "blur" and name.startswith("Sana"):
            with pytest.raises(UnsupportedPipelineError, match="block '0' is linear: it has no queries to blur"):
                check(network(name), edit)
            continue
        seen = under(name, edit)
        assert (seen - base).flatten(1).abs().amax(1).min() > 1e-6 * largest, edit
        assert torch.equal(under(name, edit), seen), edit
        for row in (0, BATCH - 1):
            assert (under(name, edit, row)[row] - seen[row]).abs().max() < 1e-5 * largest, edit
    assert state(made(name)) == before
    assert torch.equal(called(name)(), base)


@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in BLOCKLESS])
def test_an_edit_of_nothing_is_the_clean_pass(name: str) -> None:
    if not name.startswith("Sana"):
        assert torch.equal(under(name, Perturbation("blur", 0.0)), called(name)())
    assert torch.equal(under(name, Perturbation("shift", 0.0)), called(name)())


# --- what stays as it was ---------------------------------------------------------------------------------------------


def own(attention: Any, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """A processor of the user's own, which multiplies by hand."""
    text = kwargs.get("encoder_hidden_states")
    text = hidden if text is None else text
    query, key, value = (
        attention.head_to_batch_dim(one) for one in (attention.to_q(hidden), attention.to_k(text), attention.to_v(text))
    )
    product = torch.bmm(attention.get_attention_scores(query, key, kwargs.get("attention_mask")), value)
    return attention.to_out[1](attention.to_out[0](attention.batch_to_head_dim(product)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("edit", SMALL, ids=str)
def test_processors_that_multiply_by_hand(edit: Perturbation) -> None:
    from diffusers.models.attention_processor import AttnProcessor, SlicedAttnProcessor

    name = "StableDiffusionXLPipeline"
    module: Any = network(name)
    before, wanted = module.attn_processors, under(name, edit)
    try:
        for processor in (AttnProcessor(), SlicedAttnProcessor(1), own):
            module.set_attn_processor(processor)
            assert (under(name, edit) - wanted).abs().max() < 1e-5 * wanted.abs().max()
            assert all(one is processor for one in module.attn_processors.values())
    finally:
        module.set_attn_processor(before)


def test_a_product_that_nobody_sees_is_an_error() -> None:
    def fast(attention: Any, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        text = kwargs.get("encoder_hidden_states")
        scores = attention.to_q(hidden) @ attention.to_k(hidden if text is None else text).mT
        return attention.to_out[0](scores.softmax(-1) @ attention.to_v(hidden if text is None else text))  # type: ignore[no-any-return]

    name = "StableDiffusionXLPipeline"
    module: Any = network(name)
    before = module.attn_processors
    try:
        module.set_attn_processor(fast)
        with pytest.raises(GuidanceNotAppliedError, match="function does not multiply by PyTorch's scaled_dot_product"):
            under(name, Perturbation("identity"))
    finally:
        module.set_attn_processor(before)


@pytest.mark.parametrize("edit", [*EDITS[:-1], Perturbation("shift", 20)], ids=str)
@pytest.mark.parametrize("name", ["StableDiffusionXLPipeline", "FluxPipeline"])
def test_a_pass_that_fails_leaves_nothing_behind(name: str, edit: Perturbation) -> None:
    base, before = called(name)(), state(made(name))
    handle = list(network(name).modules())[-1].register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        under(name, edit)
    handle.remove()
    assert not any("_compiled_call_impl" in vars(module) for module in network(name).modules())
    assert state(made(name)) == before
    assert torch.equal(called(name)(), base)


def test_a_pass_that_did_not_come_by_is_an_error() -> None:
    for edit in (Perturbation("skip"), Perturbation("shift", 20)):
        with (
            pytest.raises(GuidanceNotAppliedError, match=r"UNet2DConditionModel did not reach what .* edits"),
            edited(network("StableDiffusionXLPipeline"), edit, seeds()),
        ):
            pass


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "stack", "message"),
    [
        ("StableDiffusionXLPipeline", "pag(3, blocks='mod')", "has no block 'mod'; did you mean 'mid'"),
        ("StableDiffusionXLPipeline", "seg(3, blocks='down.0')", "has no block 'down.0'; it has down.1, mid, up.0"),
        ("StableDiffusion3Pipeline", "slg(3, blocks=(1, 7))", "SD3Transformer2DModel has no block '7'; it has 0 to 1"),
        ("FluxPipeline", "tpg(3, blocks='single.3')", r"has no block 'single.3'; it has 0, single.0"),
        ("SanaPipeline", "seg(3)", "block '0' is linear: it has no queries to blur"),
        ("Kandinsky3Pipeline", "pag(3)", "the blocks of Kandinsky3UNet are of no kind that an edit"),
    ],
)  # fmt: skip
def test_what_a_network_does_not_have_is_refused_in_one_line(name: str, stack: str, message: str) -> None:
    with pytest.raises(UnsupportedPipelineError, match=message) as caught:
        gs.guide(made(name), stack)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: gs.PAG(3, blocks="a b"), "PAG: blocks names blocks of the network, such as 'mid'"),
        (lambda: gs.PAG(3, blocks=()), "PAG: blocks names blocks"),
        (lambda: gs.PAG(3, blocks=True), "PAG: blocks names blocks"),
        (lambda: gs.SLG(3, None), "SLG: blocks names those that are left out"),
        (lambda: gs.SEG(3, sigma=-1), "SEG: sigma must be between 0 and 1e.06, got -1; or inf, for the mean"),
        (lambda: gs.S2(3, share=0), "S2: share must be between"),
        (lambda: gs.SelfGuidance(3, shift=2000), "SelfGuidance: shift must be between 0 and 1000"),
    ],
)  # fmt: skip
def test_wrong_parameters_are_refused_at_construction(make: Callable[[], gs.Rule], message: str) -> None:
    with pytest.raises(gs.RuleError, match=message):
        make()


def test_blocks_are_written_in_several_ways() -> None:
    for blocks in ("7,8", "7, 8", (7, 8), [7, "8"], (7, 8, 7)):
        assert gs.SLG(2, blocks) == gs.SLG(2, "7,8")
    assert gs.SLG(2, 0).blocks == "0"
    for text in ("slg(2, 7)", "slg(2, (7, 8))", "seg(2, sigma=inf)", "pag(1, blocks='down.1,mid')"):
        stack = gs.parse(text)
        assert gs.parse(str(stack)) == stack
        assert gs.from_config(gs.to_config(stack)) == stack


def test_the_names_of_blocks_are_in_the_diagnosis() -> None:
    (note,) = (one for one in gs.doctor(made("StableDiffusion3Pipeline"), rules=False).notes if "blocks" in one)
    assert note.endswith("0 to 1; 'middle' is 1")


# --- what each does ---------------------------------------------------------------------------------------------------


def test_a_blur_and_the_identity_by_hand() -> None:
    """Beside a text that stands first: the picture's four tokens of a grid of 2 by 2, and two of the text."""
    torch.manual_seed(3)
    query, key, value = torch.randn(3, 2, 1, 6, 4, dtype=torch.float64)
    scores = query @ key.mT / 2
    mask = torch.zeros(6, 6, dtype=torch.float64)
    mask[2:, 2:] = -math.inf
    mask.fill_diagonal_(0)
    assert torch.allclose(alone(Product(query, key, value), slice(2, 6)), (scores + mask).softmax(-1) @ value)
    mean = query.clone()
    mean[:, :, 2:] = query[:, :, 2:].mean(2, keepdim=True)
    wanted = functional.scaled_dot_product_attention(mean, key, value)
    assert torch.allclose(blurred(Product(query, key, value), slice(2, 6), (1, 2, 2), math.inf), wanted, atol=1e-6)
    rows = torch.tensor([[2, 3, 4, 5], [1, 2, 3, 4]])  # a text of one token in the second row, and padding
    for row, first in enumerate((2, 1)):
        product = Product(query[row : row + 1], key[row : row + 1], value[row : row + 1])
        here = slice(first, first + 4)
        assert torch.equal(alone(Product(query, key, value), rows)[row], alone(product, here)[0])
        seen = blurred(Product(query, key, value), rows, (1, 2, 2), 0.8)[row]
        assert torch.allclose(seen, blurred(product, here, (1, 2, 2), 0.8)[0])


def test_a_picture_that_is_no_square() -> None:
    """Height and width are not exchanged: a blur of columns alone leaves what is the same in each column."""
    query = torch.arange(8.0).reshape(1, 1, 8, 1).expand(1, 1, 8, 4)  # 2 rows of 4
    product = Product(query, query, query)
    mean = torch.tensor([1.5] * 4 + [5.5] * 4).reshape(1, 1, 8, 1).expand(1, 1, 8, 4) + 0.0
    far = blurred(product, slice(8), (2, 1, 4), math.inf)  # two frames of one row each
    assert torch.allclose(far, functional.scaled_dot_product_attention(mean, query, query))


def test_dropped_blocks_are_each_samples_own() -> None:
    """A row is the network without the blocks that its own generator draws."""
    name, edit = "StableDiffusionXLPipeline", Perturbation("drop", 0.5)
    names = [block.name for block in architecture(network(name)).blocks]
    seen, drawn = under(name, edit), []
    for row, generator in enumerate(seeds()):
        places = sorted(torch.randperm(len(names), generator=generator)[: len(names) // 2].tolist())
        drawn.append(places)
        skipped = under(name, Perturbation("skip", blocks=",".join(names[place] for place in places)))
        assert torch.allclose(seen[row], skipped[row], atol=1e-6)
    assert len(set(map(tuple, drawn))) > 1


@pytest.mark.parametrize("name", ["StableDiffusionXLPipeline", "FluxPipeline", "Lumina2Pipeline", "ZImagePipeline"])
def test_the_time_is_shifted_towards_noise_in_every_clock(name: str) -> None:
    """By so many steps of 1000, whether the network counts in these, in shares, or the other way round."""
    family, told = FAMILIES[type(made(name)).__name__], []
    names = list(inspect.signature(network(name).forward).parameters)

    def clock(time: Any) -> Any:
        return family.clock(made(name), time)

    def note(module: nn.Module, args: Any, kwargs: Any) -> None:
        given = dict(zip(names, args, strict=False)) | kwargs
        told.append(float(clock(torch.as_tensor(given[family.timestep]).double().max())))

    called(name)()  # which is recorded by a run of the pipeline at the first time
    for shift in (0.0, 30.0, 2000.0):
        with edited(network(name), Perturbation("shift", shift), seeds(), None, clock):
            handle = network(name).register_forward_pre_hook(note, with_kwargs=True)  # behind the edit's
            called(name)()
            handle.remove()
    assert told[1] == pytest.approx(told[0] + 30, abs=0.1)
    assert told[2] == pytest.approx(999, abs=0.1)


def test_shuffled_tokens_are_each_samples_own() -> None:
    name, edit = "StableDiffusionXLPipeline", Perturbation("shuffle")
    seen = under(name, edit)
    with edited(network(name), edit, [keyed(row, 0, "an edit") for row in (7, 1, 8)]):
        other = called(name)()
    moved = (seen - other).flatten(1).abs().amax(1)
    assert moved[1] < 1e-6 * seen.abs().max() < min(moved[0], moved[2])


@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in BLOCKLESS])
def test_a_block_that_is_left_out_returns_the_streams_that_it_returns(name: str) -> None:
    """Each stream in its place: it points most the way of what the block was given for that stream."""

    def alike(one: Tensor, other: Tensor) -> float:
        return float(functional.cosine_similarity(one.flatten(), other.flatten(), 0))

    called(name)()
    for block in architecture(network(name)).blocks:
        met: list[tuple[Any, Any, Any]] = []
        handle = block.module.register_forward_hook(
            lambda module, args, kwargs, output, met=met: met.append((args, kwargs, output)), with_kwargs=True
        )
        called(name)()
        handle.remove()
        ((args, kwargs, output),) = met
        wanted, seen = (one if isinstance(one, tuple) else (one,) for one in (output, _left_out(block, args, kwargs)))
        assert len(wanted) == len(seen), block.name
        for stream, left in zip(wanted, seen, strict=True):
            if stream is None:  # of a text that is not needed any more
                continue
            assert stream.shape == left.shape, block.name
            others = [one for one in seen if one is not left and one.shape == stream.shape]
            drowned = name == "ChromaPipeline"  # the random modulations of the tiny one are louder than its streams
            assert drowned or all(alike(stream, left) > alike(stream, one) for one in others), block.name


@pytest.mark.parametrize("text", ["sg(3)", "pag(3)", "tpg(3)", "tsg(3, blocks=1)"])
def test_patched_forwards_that_hide_their_names(text: str) -> None:
    name = "StableDiffusionXLPipeline"
    pipe = made(name)

    def run() -> Tensor:
        return trajectory(pipe, gs.guide(pipe, text), arguments(name, 1, False, num_inference_steps=2))

    def hiding(forward: Callable[..., Any]) -> Callable[..., Any]:
        def patched(*args: Any, **kwargs: Any) -> Any:
            return forward(*args, **kwargs)

        patched.remembers = False  # type: ignore[attr-defined]
        return patched

    wanted = run()
    patched = [pipe.unet, *pipe.unet.down_blocks, pipe.unet.mid_block, *pipe.unet.up_blocks]
    for module in patched:
        module.forward = hiding(module.forward)
    try:
        assert torch.equal(run(), wanted)
    finally:
        for module in patched:
            del module.forward
