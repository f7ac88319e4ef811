"""guide() on networks with feature caches: the pipeline's own guidance to the bit, and a memory for each question."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import FirstBlockCacheConfig, MagCacheConfig
from torch import Tensor

import guidestack as gs
from guidestack.guidance.errors import UnsupportedPipelineError
from guidestack.guidance.query import Perturbation
from guidestack.pipelines.edits import edited
from guidestack.pipelines.families.record import FAMILIES

from . import by_hand
from .stock import Calls, Stock, recorded, trajectory
from .test_families import arguments, near
from .tiny import load
from .tiny.text import NEGATIVES

pytestmark = [
    # diffusers' own FasterCache makes grids in a way that torch has announced to end.
    pytest.mark.filterwarnings("ignore:torch.meshgrid"),
    pytest.mark.filterwarnings("ignore:this network was distilled"),
    pytest.mark.filterwarnings("ignore:adaptive.* stopped guiding every sample"),
]

STEPS, BATCH = 6, 2
IN_CALLS = ("FluxPipeline", "QwenImagePipeline", "WanPipeline", "HunyuanVideoPipeline", "CogView4Pipeline")
"""They open a context for each condition."""
KLEIN = "Flux2KleinPipeline"
"""So does it; FirstBlockCache does not run on it by itself in diffusers 0.42.1."""
IN_ONE = ("LTXPipeline", "CogVideoXPipeline", "MochiPipeline")
"""They open one context for both."""
LAYERS = ("num_layers", "num_single_layers")
NAMED = ("first block", "mag", "taylor")
"""Caches with a state for each context, on all of these networks."""
RUNS = [
    *((name, kind) for name in (*IN_CALLS, *IN_ONE) for kind in NAMED),
    *((KLEIN, kind) for kind in ("mag", "taylor")),
    ("WanPipeline", "sea"),
]
FEW = [
    *((name, kind) for name in ("FluxPipeline", "CogVideoXPipeline") for kind in NAMED),
    (KLEIN, "mag"),
    ("WanPipeline", "sea"),
]
"""A pipeline for each way of opening contexts with every cache that has them, and the two that stand alone."""


@functools.cache
def deep(name: str) -> Any:
    """A tiny pipeline whose network has three blocks of each kind: a cache leaves out those behind the first."""
    pipe = load(name).make()
    small = pipe.transformer
    torch.manual_seed(1)
    large = type(small).from_config({**small.config, **{one: 3 for one in LAYERS if one in small.config}})
    large.load_state_dict(small.state_dict(), strict=False)
    pipe.transformer = large.eval()
    return pipe


def config(kind: str, pipe: Any, threshold: float = 0.4) -> Any:
    import diffusers

    everywhere = (-1, 1001)
    around = {
        "spatial_attention_block_skip_range": 2,
        "spatial_attention_timestep_skip_range": everywhere,
        "current_timestep_callback": lambda: float(pipe._current_timestep),
    }
    if kind == "first block":
        return diffusers.FirstBlockCacheConfig(threshold=threshold)
    if kind == "mag":
        ratios = [1.0, 1.02, 1.1, 0.7, 1.02, 1.3]
        return diffusers.MagCacheConfig(0.15, 2, num_inference_steps=STEPS, mag_ratios=ratios, retention_ratio=0.1)
    if kind == "taylor":
        attention = [r"(single_transformer_blocks|transformer_blocks|blocks)\.\d+\.attn\d?"]
        return diffusers.TaylorSeerCacheConfig(3, 2, taylor_factors_dtype=torch.float32, cache_identifiers=attention)
    if kind == "sea":
        return diffusers.SeaCacheConfig(threshold=1.0)
    if kind == "pab":
        return diffusers.PyramidAttentionBroadcastConfig(**around)
    return diffusers.FasterCacheConfig(
        **around,
        unconditional_batch_skip_range=2,
        unconditional_batch_timestep_skip_range=everywhere,
        tensor_format="BFCHW",
        attention_weight_callback=lambda module: 0.3,
    )


@contextmanager
def cached(name: str, kind: str, threshold: float = 0.4) -> Iterator[Any]:
    """The pipeline with a cache."""
    pipe = deep(name)
    pipe.transformer.enable_cache(config(kind, pipe, threshold))
    try:
        yield pipe
    finally:
        pipe.transformer.disable_cache()


def given(name: str, on: bool = False, **more: Any) -> dict[str, Any]:
    return arguments(name, BATCH, on=on, num_inference_steps=STEPS, **more)


def own(name: str, rule: str) -> str:
    """A rule, with what the pipeline does behind its guidance."""
    return " | ".join(filter(None, (rule, FAMILIES[name].own)))


def managers(pipe: Any) -> list[Any]:
    """The states of a cache, one for each hook that has them."""
    hooks = [
        hook
        for part in pipe.transformer.modules()
        for hook in (part._diffusers_hook.hooks.values() if hasattr(part, "_diffusers_hook") else ())
    ]
    found = [value for hook in hooks for value in vars(hook).values() if hasattr(value, "_state_cache")]
    return list({id(one): one for one in found}.values())


# --- the pipeline's own guidance -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "kind"), [*RUNS, *((name, kind) for name in IN_ONE for kind in ("pab", "faster"))])
def test_cfg_is_the_pipelines_own(name: str, kind: str) -> None:
    if (name, kind) == ("LTXPipeline", "faster"):
        pytest.skip("diffusers has no FasterCache for tokens in a row")
    on = load(name).ON
    plain = trajectory(deep(name), deep(name), given(name, on=True))
    with cached(name, kind) as pipe:
        stock = trajectory(pipe, pipe, given(name, on=True))
        assert not near(stock, plain, 1e-6)  # the cache did something
        for rows in ("asked", "pipeline"):
            guided = gs.guide(pipe, own(name, f"cfg({on})"), rows=rows)
            assert torch.equal(trajectory(pipe, guided, given(name)), stock)
            report = guided.report
            assert 0 < report.cached < report.rows == 2 * BATCH * STEPS
            assert f"{report.cached} of them from a feature cache" in str(report)
        if kind != "faster":  # which needs both halves
            off = trajectory(pipe, pipe, given(name, negative=False, **{load(name).SCALE: 1.0}))
            unguided = gs.guide(pipe, gs.Stack())
            assert torch.equal(trajectory(pipe, unguided, given(name, negative=False)), off)


# --- further conditions and perturbed passes -----------------------------------------------------------------------


def in_context(pipe: Any, name: str, calls: Calls, each: int, around: Callable[[int], Any] = nullcontext) -> Calls:
    """Recorded calls, made in a context of their own: of a cache that counts anew after a step without them."""
    last = -1

    def made(original: Callable[..., Any], step: int) -> Callable[..., Any]:
        def call(**arguments: Any) -> Any:
            nonlocal last
            states, counts = managers(pipe), not isinstance(pipe.transformer._cache_config, FirstBlockCacheConfig)
            told = states[0]._context
            at = {one: value for one, value in vars(told).items() if one != "name"}
            with pipe.transformer.cache_context(name, **at):
                if counts and last != step - 1:
                    for one in states:
                        one._state_cache.pop(name, None)
                    if isinstance(pipe.transformer._cache_config, MagCacheConfig):
                        states[0].get_state().step_index = step
                with around(step):
                    for hook in pipe.transformer._forward_pre_hooks.values():  # `original` is behind them
                        hook(pipe.transformer, (), arguments)
                    output = original(**arguments)
            last = step
            for one in states:
                one.set_context(told)
            return output

        return call

    return [(made(original, number // each), arguments) for number, (original, arguments) in enumerate(calls)]


WEAK = {
    "positive weak": Perturbation("time", 1.0),
    "positive alone": Perturbation("identity", blocks="0"),
    "positive short": Perturbation("skip", blocks="0"),
}
"""The perturbed pass of TSG, and those of PAG and SLG in the first block, which caches measure."""


def weak(pipe: Any, each: int, edit: Perturbation) -> Callable[[int], Any]:
    """A perturbed pass at a step; where unconditional rows stand before those of the prompt, theirs too."""

    def around(step: int) -> Any:
        own = [by_hand.key(7 + sample, step, f"{edit.kind} positive") for sample in range(BATCH)]
        others = [torch.Generator() for _ in own] if each == 1 else []
        return edited(pipe.transformer, edit, others + own)

    return around


SECOND = ["old", "a pig"]
GUIDES: dict[str, tuple[by_hand.Guide, bool]] = {
    "perpneg(3, weights=(1.0, 0.5))": (by_hand.perp_neg(3, 2, 0, (1.0, 0.5)), True),
    "tsg(3) | cfg(2)": (by_hand.cfg(2, inner=by_hand.cfg(3, "positive weak")), True),
    "pag(2, blocks='0') | cfg(2)": (by_hand.cfg(2, inner=by_hand.cfg(3, "positive alone")), True),
    "slg(2, '0') | cfg(2)": (by_hand.cfg(2, inner=by_hand.cfg(3, "positive short")), True),
    "prefix(cfg(4), 2)": (by_hand.prefix(by_hand.cfg(4), 2), False),
    "schedule(cfg(4), 'g c g2 c*')": (
        lambda at, memory: by_hand.cfg(4)(at, memory) if at.step in (0, 2, 3) else at["positive"],
        False,
    ),
}
"""The formula of each stack, and whether it asks the same questions at every step."""


@pytest.mark.parametrize(
    ("name", "kind", "text"),
    # All stacks on a few pipelines; of the others each cache has one, in turn.
    [
        *((*run, text) for run in FEW for text in GUIDES),
        *((*run, list(GUIDES)[place % 4]) for place, run in enumerate(RUNS) if run not in FEW),
    ],
)
def test_each_question_has_a_memory_of_its_own(name: str, kind: str, text: str) -> None:
    """Against the stock pipeline around a denoiser that guides, in whose loop every question has its context.

    A first-block cache with this threshold reuses from the second step on, whatever it measures: as the other caches
    here it does not depend on what else is in a batch. SeaCache measures the samples, which all conditions share.
    """
    guide, steady = GUIDES[text]
    each = 2 if name not in IN_ONE else 1
    if each == 1 and not steady:
        pytest.skip("the rows of the pipeline's own call change, where a context begins anew")
    if name == KLEIN and text.startswith("perpneg"):
        pytest.skip("it takes no negative prompts")
    with cached(name, kind, threshold=1e9) as pipe:
        first = recorded(pipe, given(name, on=True))
        runs = {"negative": first, "negative:0": first, **dict.fromkeys(WEAK, first)}
        runs["null"] = recorded(pipe, given(name, on=True, negative=False))
        if name != KLEIN:
            runs["negative:1"] = recorded(pipe, given(name, on=True, negative_prompt=list(SECOND)))
        others = {
            one: in_context(
                pipe, one.replace(":0", ""), calls, each, weak(pipe, each, WEAK[one]) if one in WEAK else nullcontext
            )
            for one, calls in runs.items()
        }
        wanted = Stock(pipe, ("negative", "positive"), others).run(given(name, on=True), [guide] * BATCH)
        more = (
            {"negative_prompt": [list(one) for one in zip(NEGATIVES, SECOND, strict=False)]} if "perp" in text else {}
        )
        guided = gs.guide(pipe, text)
        ours = trajectory(pipe, guided, given(name, **more))
        assert near(ours, torch.stack(wanted.steps))
        assert guided.report.cached > 0
        assert guided.report.evaluations == wanted.evaluations
    plain = trajectory(pipe, gs.guide(pipe, text), given(name, **more))
    assert not near(ours, plain, 1e-4)


# --- questions that change -----------------------------------------------------------------------------------------


CHANGING = (
    "perpneg(3)",
    "tsg(3, power=1) | cfg(2)",
    "tsg(3) | tsg(2, strength=0.5) | cfg(2)",
    "during(tsg(2), progress=(0.3, 0.6)) | cfg(2)",
    "prefix(cfg(4), 2)",
    "schedule(cfg(4), 'g c g c g c')",
    "during(cfg(4), progress=(0.3, 0.6)) | cfg(2, against='null')",
    "adaptive(cfg(4), threshold={}, space='denoised')",
    "adaptive(cfg(4, against='null'), threshold={}, space='denoised') | cfg(2)",
)


@contextmanager
def witnessed(pipe: Any, kind: str) -> Iterator[list[str]]:
    """What goes on in a context with a memory of another question, or of one that was left out at a step."""
    faults: list[str] = []
    before: dict[str, tuple[Any, int]] = {}
    times: list[float] = []

    def look(network: Any, args: Any, kwargs: dict[str, Any]) -> None:
        # Once a call, with the context that the call has.
        told, state = managers(pipe)[0]._context, managers(pipe)[0]
        now = float(kwargs["timestep"].flatten()[0])
        if not times or times[-1] != now:
            times.append(now)
        texts = [round(float(row.double().sum()), 6) for row in kwargs["encoder_hidden_states"]]
        known = state._state_cache.get(told.name)
        fresh = known is None or (kind == "mag" and known.previous_residual is None)
        if not fresh:
            asked, step = before[told.name]
            if asked != texts:
                faults.append(f"{told.name}: other questions")
            if len(times) - 2 != step and kind in ("mag", "taylor"):
                faults.append(f"{told.name}: left out")
        before[told.name] = (texts, len(times) - 1)

    handle = pipe.transformer.register_forward_pre_hook(look, with_kwargs=True)
    try:
        yield faults
    finally:
        handle.remove()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), FEW)
def test_no_memory_is_of_another_question(name: str, kind: str) -> None:
    with cached(name, kind) as pipe:
        for text in CHANGING:
            if "{}" in text:
                never = gs.guide(pipe, text.format(2))
                never(**given(name))
                measured = next(one for one in never.report.steps[2].traces if one.startswith("cosine"))
                low, high = sorted(never.report.trace(measured)[2])
                text = text.format((low + high) / 2)  # at that step, or before, one sample stops
            if name == KLEIN and text.startswith("perpneg"):
                continue
            more = {"negative_prompt": [["a", "b"], ["c"]]} if text.startswith("perpneg") else {}
            for most in (None, 1):
                guided = gs.guide(pipe, text, max_rows=most)
                with witnessed(pipe, kind) as faults:
                    guided(**given(name, **more))
                assert not faults, (text, most)
                assert all(not one._state_cache for one in managers(pipe))  # nothing is kept
                assert all(one._context is None for one in managers(pipe))


def test_a_condition_that_is_drawn_anew_is_evaluated_in_full() -> None:
    """What a network made of the last random condition says nothing of this one's."""
    name = "FluxPipeline"
    with cached(name, "first block", threshold=1e9) as pipe:
        family = FAMILIES[name]
        drawn: list[Tensor] = []

        def draw(pipe: Any, rows: Any, generators: Any) -> dict[str, Tensor]:
            like = rows["encoder_hidden_states"]
            drawn.append(torch.stack([torch.randn(like.shape[1:], generator=one) for one in generators]))
            return {"encoder_hidden_states": drawn[-1]}

        FAMILIES[name] = replace(family, random={"gaussian": draw})
        try:
            guided = gs.guide(pipe, "cfg(2) | icg(3, source='gaussian')")
            guided(**given(name))
        finally:
            FAMILIES[name] = family
        assert [step.rows - step.cached for step in guided.report.steps] == [3 * BATCH] + [BATCH] * (STEPS - 1)


# --- caches without contexts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", IN_ONE)
def test_a_cache_with_one_memory_takes_one_call_a_step(name: str) -> None:
    with cached(name, "pab") as pipe:
        for text in ("tsg(3)", "cfg(2) | tsg(3)", "during(tsg(2), progress=(0.3, 0.6)) | cfg(2)"):
            with pytest.raises(UnsupportedPipelineError, match=r"PyramidAttentionBroadcast of .* one memory"):
                gs.guide(pipe, text)(**given(name, negative="cfg" in text))
        with pytest.raises(UnsupportedPipelineError, match="several in a step"):
            gs.guide(pipe, "cfg(2)", max_rows=1)(**given(name))
        # The rows of the one call may be others, and may change: it begins anew there.
        steady = gs.guide(pipe, "perpneg(3)")
        steady(**given(name, negative_prompt=[["a", "b"], ["c"]]))
        assert 0 < steady.report.cached < steady.report.rows
        guided = gs.guide(pipe, "prefix(cfg(4), 3)")
        guided(**given(name))
        assert [step.cached for step in guided.report.steps] == [0, 2 * BATCH, 0, 0, BATCH, 0]
        other = gs.guide(pipe, "prefix(cfg(4), 3) | during(cfg(2, against='null'), progress=(0.5, 1))")
        other(**given(name))
        assert [step.cached for step in other.report.steps] == [0, 2 * BATCH, 0, 0, 2 * BATCH, 0]


@pytest.mark.parametrize("name", IN_CALLS)
@pytest.mark.parametrize("rows", ["asked", "pipeline"])
def test_a_cache_with_one_memory_is_refused_where_each_condition_has_its_call(name: str, rows: str) -> None:
    """The stock pipeline mixes its conditions there, or fails."""
    with cached(name, "pab") as pipe:
        with pytest.raises(UnsupportedPipelineError, match=r"PyramidAttentionBroadcast of .*such as FirstBlockCache"):
            gs.guide(pipe, "cfg(4)", rows=rows)(**given(name))
        unguided = gs.guide(pipe, gs.Stack())
        unguided(**given(name, negative=False))
        assert unguided.report.cached > 0


@pytest.mark.parametrize("name", ["CogVideoXPipeline", "MochiPipeline"])
def test_a_cache_that_makes_the_unconditional_answer_itself(name: str) -> None:
    with cached(name, "faster") as pipe:
        for text in ("prefix(cfg(4), 3)", "perpneg(3)", "schedule(cfg(4), 'g s g*')", "tsg(3) | cfg(2)"):
            with pytest.raises(UnsupportedPipelineError, match=r"FasterCache of .* remembers") as caught:
                gs.guide(pipe, text)(
                    **given(name, negative_prompt=[["a", "b"], ["c"]] if "perp" in text else ["a", "c"])
                )
            # Nothing is recommended that the stack would be refused with.
            assert ("rows='pipeline'" in str(caught.value)) is ("perp" not in text and "tsg" not in text)
        # With all rows at every step a sample may stop, and others go on as they would.
        guided = gs.guide(pipe, "prefix(cfg(4), 3)", rows="pipeline")
        guided(**given(name))
        assert guided.report.rows == 2 * BATCH * STEPS
        assert 0 < guided.report.cached < guided.report.rows


def test_a_run_that_fails_leaves_no_memory() -> None:
    name = "FluxPipeline"

    def fail(pipe: Any, step: int, t: Any, given: dict[str, Any]) -> dict[str, Any]:
        raise RuntimeError("on purpose")

    with cached(name, "first block", threshold=1e9) as pipe:
        guided = gs.guide(pipe, "cfg(3) | cfg(2, against='null')")
        wanted = trajectory(pipe, guided, given(name))
        with pytest.raises(RuntimeError, match="on purpose"):
            guided(**given(name, callback_on_step_end=fail))
        assert all(not one._state_cache for one in managers(pipe))
        assert torch.equal(trajectory(pipe, guided, given(name)), wanted)


def test_a_pipeline_that_opens_no_context_gets_them() -> None:
    """Flux from pictures opens none: by itself it fails under FirstBlockCache, and mixes its own two under MagCache."""
    name = "FluxImg2ImgPipeline"
    for kind in ("first block", "mag", "taylor"):
        with cached(name, kind, threshold=1e9) as pipe:
            if kind != "mag":
                with pytest.raises(ValueError, match="No cache context"):
                    pipe(**given(name, on=True))
            guided = gs.guide(pipe, "cfg(3) | cfg(2, against='null')")
            with witnessed(pipe, kind) as faults:
                guided(**given(name))
            assert guided.report.cached > 0
            assert not faults
