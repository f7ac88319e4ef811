"""Every family: the pipeline's own guidance to the bit, rules against another computation, nothing left behind."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import guidestack as gs
from guidestack.guidance.errors import UnsupportedSchedulerError
from guidestack.pipelines.families.record import FAMILIES, Family, register_family
from guidestack.scripts.dev import families

from . import by_hand
from .left import state
from .stock import Stock, recorded, trajectory
from .tiny import PIPELINES, load
from .tiny.text import NEGATIVES

pytestmark = pytest.mark.filterwarnings("ignore:this network was distilled")

TWO_SCALES = [name for name in PIPELINES if "InstructPix2Pix" in name]
"""Their own guidance has two scales."""
FROM_ZERO = ["Kandinsky3Pipeline", "ZImagePipeline", "ZImageImg2ImgPipeline"]
"""Their own scale counts from 0, and their formula rounds otherwise."""
NEGATED = ["ZImagePipeline", "ZImageImg2ImgPipeline", "Lumina2Pipeline", "HiDreamImagePipeline"]
"""They negate what the network emits."""
FRAME_BY_FRAME = "WanImageToVideoPipeline, a timestep for each token"
"""Its first frame is put back after each step: what the scheduler makes of it does not count."""
PARTS: dict[str, Callable[[dict[str, Any]], tuple[slice, ...]]] = {
    "StableDiffusion3InpaintPipeline, 33 channels": lambda given: (slice(16),),
    "FluxKontextPipeline": lambda given: (slice(given["hidden_states"].shape[1] // 2),),
    "WanImageToVideoPipeline": lambda given: (slice(4),),
    FRAME_BY_FRAME: lambda given: (slice(None), slice(1, None)),
    "LTXImageToVideoPipeline": lambda given: (slice(given["hidden_states"].shape[1] // given["num_frames"], None),),
}
"""Where the samples are in what the network sees, of the pipelines that show it a picture beside them."""
KNOWN = [name for name in PIPELINES if name.partition(",")[0] in FAMILIES]
ELSEWHERE = {"StableDiffusionPipeline", "DiTPipeline", "DDPMPipeline", "DDIMPipeline"}
"""The first one is tested in test_parity, the others in test_class_conditional and test_unconditional."""
BATCH = 3


def test_every_record_has_a_tiny_pipeline() -> None:
    missing = set(FAMILIES) - {name.partition(",")[0] for name in KNOWN} - ELSEWHERE
    assert not missing, "no test runs on these: put a builder into tests/pipelines/tiny and its name into PIPELINES"


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


def seen(name: str, steps: torch.Tensor) -> torch.Tensor:
    """What counts of the steps of a run."""
    return steps[:, :, :, 1:] if name == FRAME_BY_FRAME else steps


@pytest.mark.parametrize("name", [name for name in KNOWN if name not in TWO_SCALES])
def test_cfg_is_the_pipelines_own(name: str) -> None:
    builder, pipe = load(name), made(name)
    family = FAMILIES[type(pipe).__name__]
    plus = name in FROM_ZERO
    for batch, negative in ((1, True), (3, True), (3, False)):
        stock = seen(name, trajectory(pipe, pipe, arguments(name, batch, negative, on=True)))
        guided = gs.guide(pipe, " | ".join(filter(None, (f"cfg({builder.ON + plus})", family.own))))
        ours = seen(name, trajectory(pipe, guided, arguments(name, batch, negative)))
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
HALVES = dict.fromkeys(TWO_SCALES, ("positive", "image", "negative"))
HALVES |= dict.fromkeys(("ZImagePipeline", "ZImageImg2ImgPipeline"), ("positive", "negative"))
"""The order of the conditions in one batch where it is not negative, positive, or in calls."""
FORGETFUL = [name for name in KNOWN if name.startswith("Wan")]
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
    others["positive:1"] = recorded(pipe, arguments(name, on=True, prompt=list(FURTHER)))
    if name not in NO_NEGATIVES:
        others["negative:1"] = recorded(pipe, arguments(name, on=True, negative_prompt=list(SECOND)))
    return Stock(pipe, HALVES.get(name, ("negative", "positive")), others, name in NEGATED, PARTS.get(name))


def near(ours: torch.Tensor, wanted: torch.Tensor, tolerance: float = 2e-5) -> bool:
    return bool((ours - wanted).abs().max() < tolerance * wanted.abs().max())


def compare(name: str, stack: gs.Rule, guides: Sequence[by_hand.Guide], **more: Any) -> Any:
    """The guided pipeline against the stock one around a denoiser that guides."""
    one = stock(name)
    wanted = one.run(arguments(name, on=True), guides)
    guided = gs.guide(one.pipe, stack)
    ours = trajectory(one.pipe, guided, arguments(name, **more))
    assert near(seen(name, ours), seen(name, torch.stack(wanted.steps)))
    assert guided.report.evaluations == wanted.evaluations
    return guided


@pytest.mark.parametrize("name", KNOWN)
def test_perp_neg(name: str) -> None:
    if name in NO_NEGATIVES:
        compare(
            name,
            gs.PerpNeg(3, positive_weights=0.7),
            [by_hand.perp_neg(3, 0, 1, (), (0.7,))] * BATCH,
            extra_prompt=FURTHER,
        )
        return
    negatives = [[one, two] if two else [one] for one, two in zip(NEGATIVES, SECOND, strict=False)]
    guides = [by_hand.perp_neg(3, len(one), 1, (1.0, 0.5), (0.7,)) for one in negatives]
    stack = gs.PerpNeg(3, weights=(1, 0.5), positive_weights=0.7)
    guided = compare(name, stack, guides, negative_prompt=negatives, extra_prompt=FURTHER)
    steps = len(guided.report.steps)
    assert guided.report.evaluations == [5 * steps, 4 * steps, 5 * steps]


@pytest.mark.parametrize("name", KNOWN)
def test_apg(name: str) -> None:
    # A radius between the norms that occur: some updates are clipped, some are not.
    free = stock(name).run(arguments(name, on=True), [by_hand.apg(3, beta=-0.5)] * BATCH)
    radius = sorted(float(memory["m"].norm()) for memory in free.memories)[1] * 1.01
    stack = gs.APG(3, eta=0.3, radius=radius, momentum=-0.5)
    guided = compare(name, stack, [by_hand.apg(3, 0.3, radius, -0.5)] * BATCH)
    clips = [clip for step in guided.report.trace("apg_clip") for clip in step]
    assert min(clips) < 1
    assert max(clips) == 1


def adaptive(scale: float, threshold: float) -> by_hand.Guide:
    """CFG until <D_c, D_u>/(|D_c| |D_u|) >= threshold. In a flow's first step the noise is x itself."""
    cfg = by_hand.cfg(scale)

    def guide(at: by_hand.At, memory: by_hand.Memory) -> torch.Tensor:
        if not memory.get("stopped"):
            c, u = at.D(at["positive"]), at.D(at["negative"])
            memory.setdefault("cosines", []).append(float(by_hand.dot(c, u) / (c.norm() * u.norm())))
            memory["stopped"] = memory["cosines"][-1] >= threshold
        return at["positive"] if memory["stopped"] else cfg(at, memory)

    return guide


@pytest.mark.parametrize("name", KNOWN)
def test_adaptive_guidance(name: str) -> None:
    # A threshold between the cosines of the first step: some samples stop there, some do not.
    never = stock(name).run(arguments(name, on=True), [adaptive(3, 2.0)] * BATCH)
    cosines = sorted(memory["cosines"][0] for memory in never.memories)
    low, high = max(itertools.pairwise(cosines), key=lambda pair: pair[1] - pair[0])
    assert high - low > 2e-6  # further apart than float32 is exact
    threshold = (low + high) / 2
    stack = gs.AdaptiveGuidance(gs.CFG(3), threshold=threshold, space="denoised")
    guided = compare(name, stack, [adaptive(3, threshold)] * BATCH)
    assert len(set(guided.report.evaluations)) > 1


@pytest.mark.parametrize("name", KNOWN)
def test_cfg_plus_plus(name: str) -> None:
    stack = gs.CFGPlusPlus(0.6)
    if name == "Kandinsky3Pipeline":
        with pytest.raises(UnsupportedSchedulerError, match="thresholding=True"):
            gs.guide(made(name), stack)(**arguments(name))
        return
    one = stock(name, flow=name in FORGETFUL)
    wanted = one.run(arguments(name, on=True), [by_hand.cfg_plus_plus(0.6)] * BATCH)
    assert near(gs.guide(one.pipe, stack)(**arguments(name))[0], wanted.result)


@pytest.mark.parametrize("name", KNOWN)
def test_three_rules(name: str) -> None:
    other = "negative" if name in NO_NEGATIVES else "null"
    stack = gs.CFG(3) | gs.CFG(2, against=other) | gs.Rescale(0.7)
    guide = by_hand.rescale(by_hand.cfg(2, other, by_hand.cfg(3)), 0.7)
    compare(name, stack, [guide] * BATCH)


# --- what is left behind -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KNOWN)
def test_the_pipeline_is_left_as_it_was_found(name: str) -> None:
    pipe = made(name)
    calls = recorded(pipe, arguments(name, on=True))  # and its own scale is on the pipeline now
    before = state(pipe)
    assert before["hooks"].keys() & {"unet", "transformer"}
    guided = gs.guide(pipe, gs.CFG(3) | gs.Rescale(0.5))
    whole = trajectory(pipe, guided, arguments(name))
    assert state(pipe) == before
    number, last = 0, len(calls) // len(whole) + 1  # the first call of the second step

    def fail(*given: Any) -> None:
        nonlocal number
        number += 1
        if number == last:
            raise RuntimeError("on purpose")

    modules = [getattr(pipe, name) for name in ("unet", "transformer", "transformer_2") if getattr(pipe, name, None)]
    handles = [module.register_forward_hook(fail) for module in modules]
    with pytest.raises(RuntimeError, match="on purpose"):
        guided(**arguments(name))
    for handle in handles:
        handle.remove()
    assert len(guided.report.steps) == 1  # the account of what was done
    assert state(pipe) == before
    assert torch.equal(trajectory(pipe, guided, arguments(name)), whole)


DEPENDENT = [
    "Kandinsky3Pipeline",
    "AudioLDM2Pipeline",
    "StableDiffusion3ControlNetPipeline",
    "StableDiffusion3ControlNetInpaintingPipeline",
    "HunyuanDiTControlNetPipeline",
]
"""Pipelines whose own samples depend on what else is in the batch: the prompts are brought to a length in common, or
one generator is there for all."""


def alone(name: str, sample: int, **more: Any) -> dict[str, Any]:
    """The arguments of one sample of the batch."""
    given = arguments(name, **more)
    split = ("prompt", "negative_prompt", "generator", "image", "mask_image", "control_image", "video")
    return given | {one: given[one][sample : sample + 1] for one in split if one in given and len(given[one]) == BATCH}


@pytest.mark.parametrize("name", [name for name in KNOWN if name not in DEPENDENT])
def test_a_batch_is_its_samples(name: str) -> None:
    pipe = made(name)
    for stack in (gs.CFG(3), gs.APG(3, eta=0.3, radius=3.0, momentum=-0.5)):
        guided = gs.guide(pipe, stack)
        together = trajectory(pipe, guided, arguments(name))
        for sample in range(BATCH):
            single = trajectory(pipe, guided, alone(name, sample))
            away = (single[:, 0] - together[:, sample]).abs().max()
            assert away < 1e-4 * together.abs().max(), (stack, sample)


# --- what single families need ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["FluxPipeline", "QwenImagePipeline"])
def test_a_scale_that_no_network_takes_is_said(name: str) -> None:
    guided = gs.guide(made(name), gs.CFG(3))
    with pytest.warns(gs.GuidestackWarning, match=r"guidance_scale=3\.5 does nothing: this network was not distilled"):
        guided(**arguments(name, guidance_scale=3.5))


def test_the_callers_lists_are_left_alone() -> None:
    """Z-Image's own pipeline writes its templates into the lists it is given."""
    prompts, negatives = ["a cat", "red"], ["dog", "sky"]
    guided = gs.guide(made("ZImagePipeline"), gs.CFG(3))
    guided(**arguments("ZImagePipeline", 2, prompt=prompts, negative_prompt=negatives))
    assert (prompts, negatives) == (["a cat", "red"], ["dog", "sky"])


@pytest.mark.parametrize("name", ["FluxPipeline", "HunyuanDiTControlNetPipeline", "StableDiffusion3InpaintPipeline"])
def test_a_bound_on_the_rows_is_kept_and_counted(name: str) -> None:
    """No call has more rows, nothing is evaluated twice, and the account says so; the result is the same."""
    pipe = load(name).make()
    negatives = [[one, two] if two else [one] for one, two in zip(NEGATIVES, SECOND, strict=False)]
    stack, given = gs.PerpNeg(3, weights=(1, 0.5)), {"negative_prompt": negatives}
    whole = trajectory(pipe, gs.guide(pipe, stack), arguments(name, **given))
    rows: list[int] = []
    handle = pipe.transformer.register_forward_hook(lambda module, args, output: rows.append(len(output[0])))
    for most in (1, 2, 7):
        rows.clear()
        guided = gs.guide(pipe, stack, max_rows=most)
        assert near(trajectory(pipe, guided, arguments(name, **given)), whole)
        report = guided.report
        assert max(rows) <= most
        assert sum(rows) == report.rows == sum(report.evaluations)
        assert len(rows) == report.calls
    handle.remove()


def test_a_second_call_finds_the_residuals_of_the_first() -> None:
    """HunyuanDiT's network takes them out of the list that it is handed, one by one."""
    name = "HunyuanDiTControlNetPipeline"
    stack = gs.Stack(gs.CFG(3), gs.TSG(2))  # its perturbed evaluation is a call of its own
    whole = trajectory(made(name), gs.guide(made(name), stack), arguments(name))
    assert near(trajectory(made(name), gs.guide(made(name), stack, max_rows=2), arguments(name)), whole)


def test_masks_that_only_some_prompts_need() -> None:
    """QwenImage masks nothing where all prompts of a call have one length, and the others of a batch must be masked."""
    pipe, given = made("QwenImagePipeline"), {"prompt": ["cat", "dog"]}
    guided = gs.guide(pipe, gs.PerpNeg(3, weights=(1, 0.5)))
    negatives = [["sea", "a tree"], ["sky", "x"]]
    together = trajectory(pipe, guided, arguments("QwenImagePipeline", 2, **given, negative_prompt=negatives))
    for sample in range(2):
        more = {"prompt": given["prompt"][sample : sample + 1], "negative_prompt": negatives[sample : sample + 1]}
        one = arguments("QwenImagePipeline", 2, **more)
        one["generator"] = one["generator"][sample : sample + 1]
        assert near(trajectory(pipe, guided, one)[:, 0], together[:, sample], 1e-5)


def test_an_edited_picture_is_in_every_text_condition() -> None:
    """InstructPix2Pix: the empty prompt beside a negative one sees the picture, as it does where there is none."""
    name = "StableDiffusionInstructPix2PixPipeline"
    pipe = made(name)
    guided = gs.guide(pipe, gs.CFG(3, against="null"))
    without = trajectory(pipe, guided, arguments(name, negative=False))
    both = gs.guide(pipe, gs.CFG(3, against="null") | gs.CFG(1.5, against="image") | gs.CFG(0.5, against="image"))
    assert not near(without, trajectory(pipe, gs.guide(pipe, gs.CFG(3)), arguments(name, negative=False)), 1e-3)
    # The last two rules take back what they add.
    assert near(trajectory(pipe, both, arguments(name)), without, 1e-5)


@pytest.mark.slow
def test_the_table_of_rules_is_what_runs() -> None:
    page = Path(gs.__file__).parent / "docs" / "family-rules.md"
    wanted = families.markdown(families.pipelines())
    assert page.read_text() == wanted, "run: make tables"


def test_the_documentation_names_every_pipeline_and_every_field() -> None:
    text = (Path(gs.__file__).parent / "docs" / "families.md").read_text()
    assert [name for name in FAMILIES if f"`{name}`" not in text] == []
    assert [one.name for one in dataclasses.fields(Family) if f"| `{one.name}`" not in text] == []


@pytest.mark.parametrize("name", FAMILIES)
def test_the_records_pass_the_checks_of_others(name: str) -> None:
    assert register_family(FAMILIES[name]) is FAMILIES[name]
