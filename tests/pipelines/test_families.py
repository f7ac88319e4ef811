"""Every family: the pipeline's own guidance to the bit, rules against another computation, nothing left behind."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch

import guidestack as gs
from guidestack.guidance.errors import UnsupportedPipelineError, UnsupportedSchedulerError
from guidestack.pipelines.family import FAMILIES

from . import by_hand
from .stock import Course, Stock, recorded, trajectory
from .tiny import PIPELINES, load
from .tiny.text import NEGATIVES

pytestmark = pytest.mark.filterwarnings("ignore:this network was distilled")

TWO_SCALES = [name for name in PIPELINES if "InstructPix2Pix" in name]
"""Their own guidance has two scales."""
FROM_ZERO = ["Kandinsky3Pipeline", "ZImagePipeline"]
"""Their own scale counts from 0, and their formula rounds otherwise."""
NEGATED = ["ZImagePipeline", "Lumina2Pipeline", "HiDreamImagePipeline"]
"""They negate what the network emits."""
REFUSED = {
    "CogVideoXPipeline, multistep": "CogVideoXDPMScheduler",
    "StableAudioPipeline, stochastic": "CosineDPMSolverMultistepScheduler",
}
"""Pipelines with a scheduler whose levels are not known."""
KNOWN = [name for name in PIPELINES if name.partition(",")[0] in FAMILIES and name not in REFUSED]
BATCH = 3


@cache
def made(name: str) -> Any:
    return load(name).make()


def arguments(name: str, batch: int = BATCH, negative: bool = True, on: bool = False, **more: Any) -> dict[str, Any]:
    """Of a guided call; of the stock pipeline's with its guidance if `on`."""
    builder = load(name)
    if on:
        more[builder.SCALE] = builder.ON
        if not negative and builder.SCALE == "true_cfg_scale":
            more["negative_prompt"] = [""] * batch  # without one these pipelines evaluate the prompt only
    given: dict[str, Any] = builder.arguments(batch, negative, **more)
    return given


@pytest.mark.parametrize("name", REFUSED)
def test_an_unknown_scheduler_is_refused_by_name(name: str) -> None:
    with pytest.raises(UnsupportedSchedulerError, match=f"the levels of {REFUSED[name]} are not known"):
        gs.guide(made(name), gs.CFG(3))


@pytest.mark.parametrize("name", [name for name in KNOWN if name not in TWO_SCALES])
def test_cfg_is_the_pipelines_own(name: str) -> None:
    builder, pipe = load(name), made(name)
    family = FAMILIES[type(pipe).__name__]
    plus = name in FROM_ZERO
    for batch, negative in ((1, True), (3, True), (3, False)):
        stock = trajectory(pipe, pipe, arguments(name, batch, negative, on=True))
        guided = gs.guide(pipe, " | ".join(filter(None, (f"cfg({builder.ON + plus})", family.own))))
        ours = trajectory(pipe, guided, arguments(name, batch, negative))
        away = (stock - ours).abs().max()
        assert away == 0 or (plus and away < 1e-5 * stock.abs().max()), (batch, negative)
        assert guided.report.evaluations == [2 * len(guided.report.steps)] * batch
    off = trajectory(pipe, pipe, builder.arguments(2, **{builder.SCALE: builder.OFF}))
    unguided = gs.guide(pipe, gs.Stack())
    assert torch.equal(off, trajectory(pipe, unguided, builder.arguments(2)))
    assert unguided.report.evaluations == [len(unguided.report.steps)] * 2


@pytest.mark.parametrize("name", TWO_SCALES)
def test_two_scales_are_two_rules(name: str) -> None:
    builder, pipe = load(name), made(name)
    for batch, text, image in ((1, 5.0, 1.5), (3, 3.0, 2.0)):
        scales = {"guidance_scale": text, "image_guidance_scale": image}
        stock = trajectory(pipe, pipe, builder.arguments(batch, True, **scales))
        guided = gs.guide(pipe, gs.CFG(image) | gs.CFG(1 + text - image, against="image"))
        ours = trajectory(pipe, guided, builder.arguments(batch, True))
        assert (stock - ours).abs().max() < 1e-5 * stock.abs().max()
        assert guided.report.evaluations == [3 * len(guided.report.steps)] * batch


# --- rules ---------------------------------------------------------------------------------------------------------

SECOND = ["old", "", "a pig"]  # a second negative; one sample has none
FURTHER = ["sun", "moon", "a pearl"]  # a positive beside the prompt; as long as the prompts, which one family needs
NO_NEGATIVES = ["Flux2KleinPipeline"]
"""Pipelines that take no negative prompt: their contrast is the empty one."""
NO_OTHERS = ["StableAudioPipeline"]
"""Pipelines for which no prompts are encoded beside their own two."""
HALVES = {name: ("positive", "image", "negative") for name in TWO_SCALES} | {"ZImagePipeline": ("positive", "negative")}
"""The order of the conditions in one batch where it is not negative, positive, or in calls."""
FORGETFUL = ["WanPipeline", "WanPipeline, two transformers", "WanPipeline, a timestep for each token"]
"""Their scheduler corrects the sample that it is handed by one that it remembers: CFG++ is tested with another."""


@cache
def stock(name: str, flow: bool = False) -> Stock:
    """The pipeline, with what it asks its network for other prompts; with another scheduler if `flow`."""
    pipe = made(name)
    if flow:
        from diffusers import FlowMatchEulerDiscreteScheduler

        pipe = load(name).make()
        pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    first = recorded(pipe, arguments(name, on=True))
    others = {"negative": first, "negative:0": first}
    others["null"] = recorded(pipe, arguments(name, negative=False, on=True))
    if name not in NO_OTHERS:
        others["positive:1"] = recorded(pipe, arguments(name, on=True, prompt=list(FURTHER)))
    if name not in NO_OTHERS + NO_NEGATIVES:
        others["negative:1"] = recorded(pipe, arguments(name, on=True, negative_prompt=list(SECOND)))
    return Stock(pipe, HALVES.get(name, ("negative", "positive")), others, name in NEGATED)


def compare(name: str, stack: gs.Rule | str, guides: Sequence[by_hand.Guide], **more: Any) -> tuple[Course, Any]:
    """The guided pipeline against the stock one around a denoiser that guides."""
    flow = more.pop("flow", False)
    one = stock(name, flow)
    wanted = one.run(arguments(name, on=True), guides)
    guided = gs.guide(one.pipe, stack)
    ours = trajectory(one.pipe, guided, arguments(name, **more))
    steps = torch.stack(wanted.steps)
    assert (ours - steps).abs().max() < 2e-5 * steps.abs().max()
    assert guided.report.evaluations == wanted.evaluations
    return wanted, guided


@pytest.mark.parametrize("name", [name for name in KNOWN if name not in NO_OTHERS])
def test_perp_neg(name: str) -> None:
    if name in NO_NEGATIVES:
        compare(name, gs.PerpNeg(3, positive_weights=0.7), [by_hand.perp_neg(3, 0, 1, (), (0.7,))] * BATCH, extra_prompt=FURTHER)
        return
    negatives = [[one, two] if two else [one] for one, two in zip(NEGATIVES, SECOND, strict=False)]
    guides = [by_hand.perp_neg(3, len(one), 1, (1.0, 0.5), (0.7,)) for one in negatives]
    stack = gs.PerpNeg(3, weights=(1, 0.5), positive_weights=0.7)
    _, guided = compare(name, stack, guides, negative_prompt=negatives, extra_prompt=FURTHER)
    steps = len(guided.report.steps)
    assert guided.report.evaluations == [5 * steps, 4 * steps, 5 * steps]


@pytest.mark.parametrize("name", KNOWN)
def test_apg(name: str) -> None:
    # A radius between the norms that occur: some updates are clipped, some are not.
    free = stock(name).run(arguments(name, on=True), [by_hand.apg(3, beta=-0.5)] * BATCH)
    radius = sorted(float(memory["m"].norm()) for memory in free.memories)[1] * 1.01
    stack = gs.APG(3, eta=0.3, radius=radius, momentum=-0.5)
    _, guided = compare(name, stack, [by_hand.apg(3, 0.3, radius, -0.5)] * BATCH)
    clips = [clip for step in guided.report.trace("apg_clip") for clip in step]
    assert min(clips) < 1
    assert max(clips) == 1


@pytest.mark.parametrize("name", KNOWN)
def test_adaptive_guidance(name: str) -> None:
    never = stock(name).run(arguments(name, on=True), [by_hand.adaptive(by_hand.cfg(3), 2.0)] * BATCH)
    cosines = sorted(memory["cosines"][0] for memory in never.memories)
    threshold = max(zip(cosines, cosines[1:], strict=False), key=lambda pair: pair[1] - pair[0])
    print(cosines)
    middle = sum(threshold) / 2
    guides = [by_hand.adaptive(by_hand.cfg(3), middle)] * BATCH
    _, guided = compare(name, gs.AdaptiveGuidance(gs.CFG(3), threshold=middle), guides)
    assert len(set(guided.report.evaluations)) > 1


@pytest.mark.parametrize("name", KNOWN)
def test_cfg_plus_plus(name: str) -> None:
    stack = gs.CFGPlusPlus(0.6)
    if name == "Kandinsky3Pipeline":
        with pytest.raises(UnsupportedSchedulerError, match="thresholding=True"):
            gs.guide(made(name), stack)(**arguments(name))
        return
    compare(name, stack, [by_hand.cfg_plus_plus(0.6)] * BATCH, flow=name in FORGETFUL)


@pytest.mark.parametrize("name", KNOWN)
def test_three_rules(name: str) -> None:
    other = "negative" if name in NO_OTHERS + NO_NEGATIVES else "null"
    stack = gs.CFG(3) | gs.CFG(2, against=other) | gs.Rescale(0.7)
    guide = by_hand.rescale(by_hand.cfg(2, other, by_hand.cfg(3)), 0.7)
    compare(name, stack, [guide] * BATCH)


@pytest.mark.parametrize("name", NO_OTHERS)
def test_where_no_other_prompts_are_encoded_they_are_refused(name: str) -> None:
    with pytest.raises(UnsupportedPipelineError, match="needs prompts"):
        gs.guide(made(name), gs.PerpNeg(3))
