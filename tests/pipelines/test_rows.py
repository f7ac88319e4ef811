"""rows="pipeline": the calls of the pipeline itself, for what counts on them, and who is sent there."""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import guidestack as gs
from guidestack.guidance import NEGATIVE, POSITIVE, Perturbation, Query
from guidestack.guidance.errors import InputError, UnsupportedPipelineError
from guidestack.pipelines.patches import replaced

from . import by_hand
from .stock import Stock, recorded, trajectory
from .test_around import blocks, compiled, group_offload, model_offload, sequential_offload, wrapped
from .test_families import arguments, near
from .tiny import load

STEPS, BATCH = 5, 3
WEAK = Query("positive", perturbation=Perturbation("time"))
NAMES = ["StableDiffusionXLPipeline", "StableDiffusion3Pipeline", "HiDreamImagePipeline", "FluxPipeline",
         "WanPipeline, two transformers", "ZImagePipeline"]  # fmt: skip
PIX2PIX = "StableDiffusionInstructPix2PixPipeline"
DENOISERS = ("unet", "transformer", "transformer_2")


def given(name: str, **more: Any) -> dict[str, Any]:
    return arguments(name, BATCH, num_inference_steps=STEPS, **more)


def texts(value: Any) -> list[float]:
    """A number for each row."""
    if isinstance(value, list | tuple):
        return [texts(one)[0] for one in value]
    return [float(row.double().sum()) for row in value]


@contextmanager
def seen(pipe: Any) -> Iterator[list[tuple[str, list[float]]]]:
    """The rows of each call of a denoiser: of whom, and what each is told."""
    calls: list[tuple[str, list[float]]] = []

    def look(name: str) -> Callable[..., None]:
        def note(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
            known = ("encoder_hidden_states", "cap_feats", "encoder_hidden_states_t5")
            told = next((kwargs[key] for key in known if kwargs.get(key) is not None), None)
            calls.append((name, texts(args[2] if told is None else told)))

        return note

    handles = [
        part.register_forward_pre_hook(look(name), with_kwargs=True)
        for name in DENOISERS
        if (part := getattr(pipe, name, None)) is not None
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


FEWER = (
    "cfg(4)",
    "prefix(cfg(4), 2)",
    "during(cfg(4), progress=(0.3, 0.6))",
    "schedule(cfg(4), 'g c r g c')",
    "adaptive(cfg(4), threshold={}, space='denoised')",
)


@pytest.mark.parametrize("name", [*NAMES, PIX2PIX])
def test_every_call_is_the_pipelines_own(name: str) -> None:
    pipe = load(name).make()
    with seen(pipe) as stock:
        pipe(**given(name, on=True))
    never = gs.guide(pipe, "adaptive(cfg(4), threshold=2, space='denoised')")
    never(**given(name))
    threshold = sorted(never.report.trace("cosine")[2])[1]
    skips = () if "Flux" in name or "Wan" in name else ("schedule(cfg(4), 'g s g c s')",)
    for text in (*FEWER, *skips):
        fewer = gs.guide(pipe, text.format(threshold))
        wanted = trajectory(pipe, fewer, given(name))
        guided = gs.guide(pipe, text.format(threshold), rows="pipeline")
        with seen(pipe) as calls:
            ours = trajectory(pipe, guided, given(name))
        assert near(ours, wanted)
        assert calls == stock, text
        # What was evaluated to fill counts as evaluated.
        report = guided.report
        assert report.rows == sum(report.evaluations) == sum(len(rows) for _, rows in stock)
        assert report.calls == len(stock)
        assert len(set(report.evaluations)) == 1
        if text != "cfg(4)":
            assert fewer.report.rows < report.rows


@dataclass(frozen=True)
class Some(gs.guidance.Rule):
    """Guidance away from the perturbed prompt for some of the samples."""

    samples: tuple[int, ...] = ()

    def __str__(self) -> str:
        return "some"

    def asks(self) -> frozenset[Query]:
        return frozenset({POSITIVE, NEGATIVE, WEAK})

    def queries(self, step: Any, state: Any) -> dict[Query, Tensor | None]:
        return {POSITIVE: None, NEGATIVE: None, WEAK: step.run.mask(i in self.samples for i in range(step.run.batch))}

    def update(self, estimate: Any, predictions: Any, step: Any, state: Any) -> Any:
        c, weak = predictions[POSITIVE].native, predictions[WEAK].native
        return estimate.replace("any", estimate.read("any") + 2 * (c - weak)), state


@pytest.mark.parametrize("name", [name for name in NAMES if name != "ZImagePipeline"])  # its embedding is not known
def test_samples_that_lie_apart(name: str) -> None:
    pipe = load(name).make()
    all_of_them = trajectory(pipe, gs.guide(pipe, Some((0, 1, 2))), given(name))
    none = trajectory(pipe, gs.guide(pipe, Some()), given(name))
    outer = trajectory(pipe, gs.guide(pipe, Some((0, 2))), given(name))
    assert near(outer[:, [0, 2]], all_of_them[:, [0, 2]])
    assert near(outer[:, [1]], none[:, [1]])
    assert not near(none[:, [0, 2]], all_of_them[:, [0, 2]])


def test_without_guidance_it_is_the_unguided_call() -> None:
    name = "StableDiffusionXLPipeline"
    pipe = load(name).make()
    with seen(pipe) as stock:
        pipe(**given(name, negative=False, guidance_scale=1.0))
    with seen(pipe) as calls:
        gs.guide(pipe, gs.Stack(), rows="pipeline")(**given(name, negative=False))
    assert calls == stock


def test_what_needs_more_is_refused(pipe: Any) -> None:
    for text in ("perpneg(4)", "tsg(3)", "icg(3)", "cfg(3) | tsg(2)", "cfg(3, against='positive:0')"):
        with pytest.raises(UnsupportedPipelineError, match=r"rows='pipeline' evaluates what .* negative, positive"):
            gs.guide(pipe, text, rows="pipeline")
    both = gs.guide(pipe, "cfg(3) | cfg(2, against='null')", rows="pipeline")
    both("a cat", num_inference_steps=2, output_type="latent")  # without a negative prompt they are one
    with pytest.raises(UnsupportedPipelineError, match=r"rows='pipeline' .* 'null' was asked for"):
        both("a cat", negative_prompt="dog", num_inference_steps=2, output_type="latent")
    with pytest.raises(InputError, match="rows is 'asked' or 'pipeline', got 'all'"):
        gs.guide(pipe, "cfg(3)", rows="all")
    with pytest.raises(InputError, match="drop one"):
        gs.guide(pipe, "cfg(3)", rows="pipeline", max_rows=2)


# --- patches that remember -----------------------------------------------------------------------------------------


def remembering(forward: Callable[..., Any], every: int = 2) -> Callable[..., Any]:
    """What DeepCache and its like put in a block's place: some calls return what an earlier one returned."""
    calls, kept = 0, None

    def patched(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls, kept
        if calls % every == 0:
            kept = forward(*args, **kwargs)
        calls += 1
        return kept

    patched.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]
    return patched


def on_a_block(pipe: Any) -> None:
    part = denoiser(pipe)
    block = part.mid_block if hasattr(part, "mid_block") else part.transformer_blocks[0].attn
    block.forward = remembering(block.forward)


def on_the_denoiser(pipe: Any) -> None:
    part = denoiser(pipe)
    part.forward = remembering(part.forward)


def on_a_class(pipe: Any) -> None:
    part = denoiser(pipe)
    forward = remembering(type(part).forward)
    part.__class__ = type(type(part).__name__, (type(part),), {"__module__": type(part).__module__})
    type(part).forward = forward


def denoiser(pipe: Any) -> Any:
    return getattr(pipe, "unet", None) or pipe.transformer


@pytest.mark.parametrize("patch", [on_a_block, on_the_denoiser, on_a_class])
@pytest.mark.parametrize("name", ["StableDiffusionXLPipeline", "StableDiffusion3Pipeline"])
def test_a_patch_that_remembers(name: str, patch: Callable[[Any], None]) -> None:
    on = load(name).ON

    def fresh() -> Any:
        pipe = load(name).make()
        patch(pipe)
        return pipe

    stock = trajectory(pipe := fresh(), pipe, given(name, on=True))
    plain = load(name).make()
    assert not near(stock, trajectory(plain, plain, given(name, on=True)), 1e-4)
    pipe = fresh()
    assert torch.equal(trajectory(pipe, gs.guide(pipe, gs.CFG(on)), given(name)), stock)
    for text in ("prefix(cfg(4), 2)", "perpneg(4)", "tsg(2) | cfg(3)", "schedule(cfg(4), 'g s g*')"):
        pipe = fresh()
        with seen(pipe) as calls, pytest.raises(UnsupportedPipelineError, match="may remember the last") as caught:
            gs.guide(pipe, text)(**given(name))
        whole = text not in ("perpneg(4)", "tsg(2) | cfg(3)")  # which rows='pipeline' refuses
        assert ("rows='pipeline' of guide" in str(caught.value)) is whole
        assert re.search("put the method back$", str(caught.value), re.IGNORECASE)
        assert len(calls) <= 1  # at once, also where it is a later step that leaves something out
    with pytest.raises(UnsupportedPipelineError, match=r"which was replaced by .*remember"):
        gs.guide(fresh(), "cfg(4)", max_rows=1)(**given(name))
    with pytest.raises(UnsupportedPipelineError, match=r"works with the pipeline's own calls only"):
        gs.guide(fresh(), "adaptive(cfg(4), threshold=-1, space='denoised')")(**given(name))
    # With the pipeline's rows the formula holds around a network that remembers.
    wanted = Stock(
        pipe := fresh(), ("negative", "positive"), {"negative": recorded(load(name).make(), given(name, on=True))}
    )
    course = wanted.run(given(name, on=True), [by_hand.prefix(by_hand.cfg(4), 2)] * BATCH)
    pipe = fresh()
    guided = gs.guide(pipe, "prefix(cfg(4), 2)", rows="pipeline")
    assert near(trajectory(pipe, guided, given(name)), torch.stack(course.steps))


def test_processors_that_take_the_batch_for_both_halves() -> None:
    """Attention control changes the prompt's half by the other one's."""
    name = "StableDiffusionXLPipeline"
    pipe = load(name).make()

    class Control:
        def __init__(self, inner: Any) -> None:
            self.inner, self.batches = inner, set()

        def __call__(self, attn: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            self.batches.add(len(hidden_states))
            out = self.inner(attn, hidden_states, *args, **kwargs)
            negative, positive = out.chunk(2)
            return torch.cat([negative, 0.7 * positive + 0.3 * negative])

    controls = {key: Control(inner) for key, inner in pipe.unet.attn_processors.items()}
    pipe.unet.set_attn_processor(dict(controls))
    first = recorded(pipe, given(name, on=True))
    course = Stock(pipe, ("negative", "positive"), {"negative": first}).run(
        given(name, on=True), [by_hand.prefix(by_hand.cfg(4), 2)] * BATCH
    )
    guided = gs.guide(pipe, "prefix(cfg(4), 2)", rows="pipeline")
    assert near(trajectory(pipe, guided, given(name)), torch.stack(course.steps))
    assert {size for one in controls.values() for size in one.batches} == {2 * BATCH}


@pytest.mark.parametrize(
    "around", [model_offload, sequential_offload, group_offload(offload_type="leaf_level"), compiled, wrapped, blocks]
)
@pytest.mark.filterwarnings("ignore:`torch_dtype` is deprecated")
def test_what_is_known_to_remember_nothing(around: Callable[[Any], None]) -> None:
    from diffusers import FluxTransformer2DModel

    pipe = load("FluxPipeline").make()
    around(pipe)
    network = pipe.transformer
    assert [replaced(part) for part in network.modules() if replaced(part)] == []
    inner = getattr(network, "_orig_mod", network)
    assert isinstance(inner, FluxTransformer2DModel)
    inner.transformer_blocks[0].forward = remembering(inner.transformer_blocks[0].forward)
    assert [replaced(part) for part in network.modules() if replaced(part)] == ["remembering.<locals>.patched"]
    block = inner.transformer_blocks[0]
    block.forward.remembers = False  # who knows that it does not says so
    assert not replaced(block)
    del block.forward
    block.forward = torch.compile(type(block).forward.__get__(block), backend="eager")
    assert not replaced(block)
    block.forward = types.MethodType(lambda self, *args, **kwargs: None, block)
    assert replaced(block)
    assert not replaced(nn.ModuleList())
