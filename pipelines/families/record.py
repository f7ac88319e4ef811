"""Family records: the few facts about a diffusers pipeline that guiding it needs.

A record says how the pipeline's own loop calls its denoiser and its scheduler. It holds no guidance. Defaults are what
most pipelines of diffusers do, so that a record states only what is special about its pipeline.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ...guidance.errors import InputError, UnsupportedPipelineError
from ...guidance.notation.registry import OTHERS, RUNNING

Pipeline = Any  # diffusers' DiffusionPipeline, which has no types
Call = Mapping[str, Any]
"""The arguments of one call of a pipeline, by name."""
Rows = Mapping[str, Any]
"""Row arguments of a denoiser, by name."""
Draw = Callable[[Rows, Sequence[torch.Generator]], Rows]
"""Makes the row arguments of a random condition."""
SCALE = "guidance_scale"


@dataclass(frozen=True, kw_only=True)
class Family:
    """How one pipeline class calls its denoiser and its scheduler, guides by itself, and encodes its conditions.

    A record is made with keywords, of which only `pipeline` and `rows` are always needed. The defaults are those of a
    pipeline of diffusers that evaluates ``[unconditional, conditional]`` in one batch.

    Args:
        pipeline: name of the pipeline class.
        denoiser: name of the component that predicts.
        others: names of components that may be there and predict in its place in a part of a run (Wan 2.2).
        positional: names of the denoiser's arguments that the pipeline gives by position.
        sample: name of the argument that holds the noisy samples.
        rows: the other arguments that have one row for each row of the batch: only these are ever sliced. A dot goes
            into a dictionary: ``"added_cond_kwargs.image_embeds"``. A list in one is sliced item by item.
        axes: the axis of the rows, for those of `rows` that do not have them on axis 0.
        listed: those of `rows` that are lists with an entry for each row; other lists hold tensors that have rows.
        unpack: from the form in which the denoiser takes and returns samples to a tensor ``(B, ...)``.
        pack: from a tensor ``(B, ...)`` to the form in which the denoiser takes and returns samples.
        part: ``part(pipe, arguments)``: the slices, on the axes behind the batch, of what is denoised in what the
            denoiser returns, given its arguments; () for all of it but learned variances. Rules see this part only; the
            rest is as for the prompt. Where the scheduler is not asked to scale them, the samples are sliced likewise.
        handed: ``handed(pipe, arguments, samples)``: that part in the form in which the scheduler is handed it.
        timestep: name of the argument with the time.
        clock: ``clock(pipe, time)``: the scheduler's timestep for that argument.
        negates: whether the pipeline negates what the denoiser returns before the scheduler gets it.
        upcasts: whether the pipeline casts what the denoiser returns to float32 before it combines the conditions; the
            rules then compute in float32 as well.
        halves: the conditions that it evaluates, in order; ``"negative"`` stands for the unconditional one.
        sequential: whether it evaluates them in one call each, one after the other, instead of in one batch.
        guided: the arguments with which the pipeline evaluates all halves. The values do not matter beyond that: what
            the pipeline gets back makes its own combination the identity.
        unguided: the arguments with which it evaluates the positive half only.
        owned: arguments that a user may not give, since rules replace them: name to the rule that does, "" where none
            does yet. The pipeline's default for them is not what the user asked for.
        branches: ``branches(pipe, call)``: whether the pipeline, in the middle of a call, is evaluating all halves.
        cannot: ``cannot(pipe)``: why this pipeline has no unconditional branch, or "".
        filled: the arguments that it needs beside `guided` where the user gives none: an empty negative prompt.
        own: text of the rules that its own guidance applies behind its combination of two predictions.
        offset: what its own scale lacks of that of `cfg`: 1 where it counts from 0. The two then agree to rounding.
        embedded: ``embedded(pipe)``: name of the argument with the guidance scale that this pipeline's network takes
            as an input, having been distilled from guided runs, or "". It stays the user's.
        encode: ``encode(pipe, call, texts, as_prompt)``: the row arguments, one row a text, of other prompts, made by
            the pipeline's own encoders with the call's own options, as it does for prompts or as for negative ones.
            None where there are no texts.
        completed: ``completed(arguments, rows)``: the rows of `encode` with what depends on the samples, given the
            arguments of the pipeline's call for the prompt.
        embeds: the pipeline's arguments for the embeddings of a prompt, each with the row argument that it becomes, or
            "" where the denoiser is not given it. With ``negative_`` before it each is that of a negative prompt.
        uncounted: ``uncounted(pipe)``: tokens of `prompt_embeds` that its `max_sequence_length` does not count.
        alike: whether it takes embeddings of a negative prompt only with as many tokens as those of the prompt, though
            it evaluates each by a call of its own.
        zeros: ``zeros(pipe)``: whether the pipeline evaluates zeros where it is given no ``negative_prompt``, and the
            encoded text where it is given an empty one. Zeros are then its empty condition.
        random: for each source that `ICG` may name: ``draw(pipe, rows, generators)``, the row arguments of a random
            condition, one row a sample, given those of the prompt and a generator for each sample.
        halved: arguments that, with its own guidance on, it takes with a row for each of `halves`, in their order, and
            without it with one row: an IP-Adapter's pictures.
        keywords: names that the pipeline takes through ``**kwargs``; it ignores others there, which guide() does not.
        scratch: attributes that the pipeline sets on itself from its guidance arguments; restored after the call.
        example: ``example(pipe, batch)``: the arguments of a small call for so many samples that the names of the
            pipeline's arguments do not give away; for `doctor`.
    """

    pipeline: str
    # How the pipeline calls its denoiser, and what it does with the answer.
    rows: tuple[str, ...]
    denoiser: str = "transformer"
    others: tuple[str, ...] = ()
    positional: tuple[str, ...] = ()
    sample: str = "hidden_states"
    axes: Mapping[str, int] = field(default_factory=dict)
    listed: tuple[str, ...] = ()
    unpack: Callable[[Any], torch.Tensor] = lambda samples: samples
    pack: Callable[[torch.Tensor], Any] = lambda samples: samples
    part: Callable[[Pipeline, Mapping[str, Any]], tuple[slice, ...]] = lambda pipe, arguments: ()
    handed: Callable[[Pipeline, Mapping[str, Any], torch.Tensor], torch.Tensor] = lambda pipe, arguments, samples: (
        samples
    )
    timestep: str = "timestep"
    clock: Callable[[Pipeline, float], float] = lambda pipe, timestep: timestep
    negates: bool = False
    upcasts: bool = False
    # What its own guidance does, and how it is turned on and off.
    halves: tuple[str, ...] = ("negative", "positive")
    sequential: bool = False
    guided: Mapping[str, Any] = field(default_factory=lambda: {SCALE: 2.0})
    unguided: Mapping[str, Any] = field(default_factory=lambda: {SCALE: 1.0})
    owned: Mapping[str, str] = field(default_factory=lambda: {SCALE: "cfg(scale)"})
    branches: Callable[[Pipeline, Call], bool] = lambda pipe, call: bool(pipe.do_classifier_free_guidance)
    cannot: Callable[[Pipeline], str] = lambda pipe: ""
    filled: Mapping[str, Any] = field(default_factory=dict)
    own: str = ""
    offset: float = 0.0
    embedded: Callable[[Pipeline], str] = lambda pipe: ""
    # How it encodes its conditions, and which others there are.
    encode: Callable[[Pipeline, Call, Sequence[str], bool], Rows] | None = None
    completed: Callable[[Mapping[str, Any], Rows], Rows] = lambda arguments, rows: rows
    embeds: Mapping[str, str] = field(default_factory=dict)
    uncounted: Callable[[Pipeline], int] = lambda pipe: 0
    alike: bool = False
    zeros: Callable[[Pipeline], bool] = lambda pipe: False
    random: Mapping[str, Callable[[Pipeline, Rows, Sequence[torch.Generator]], Rows]] = field(default_factory=dict)
    halved: tuple[str, ...] = ()
    # What else to know of its calls.
    keywords: tuple[str, ...] = ()
    scratch: tuple[str, ...] = (f"_{SCALE}",)
    example: Callable[[Pipeline, int], Call] = lambda pipe, batch: {}

    @property
    def scale(self) -> str:
        """The name of the argument with the scale of the pipeline's own guidance, from `owned`; "" if there is none."""
        return next((name for name in self.guided if self.owned.get(name, "").startswith("cfg(scale")), "")

    def __reduce_ex__(self, protocol: Any) -> Any:
        """An entered record is copied and pickled as its name, and found by it: its functions cannot be pickled."""
        return (_entered, (self.pipeline,)) if FAMILIES.get(self.pipeline) is self else super().__reduce_ex__(protocol)


WITH_RESCALE: Mapping[str, Any] = {
    "guided": {SCALE: 2.0, "guidance_rescale": 0.0},
    "unguided": {SCALE: 1.0, "guidance_rescale": 0.0},
    "owned": {SCALE: "cfg(scale)", "guidance_rescale": "rescale(phi)"},
    "scratch": (f"_{SCALE}", "_guidance_rescale"),
}
"""The fields of a record whose pipeline rescales what it guided, by an argument of its own."""
SEQUENTIAL: dict[str, Any] = {"halves": ("positive", "negative"), "sequential": True}
"""The fields of a record whose pipeline evaluates the prompt, and then the negative prompt by another call."""
TRUE_CFG: dict[str, Any] = {
    **SEQUENTIAL,
    "guided": {"true_cfg_scale": 2.0},
    "filled": {"negative_prompt": ""},
    "unguided": {"true_cfg_scale": 1.0},
    "owned": {"true_cfg_scale": "cfg(scale)"},
    "branches": lambda pipe, call: call["true_cfg_scale"] > 1,
    "embedded": lambda pipe: SCALE if pipe.transformer.config.guidance_embeds else "",
}
"""The fields of a sequential record whose pipeline guides by ``true_cfg_scale``; its network may take another scale."""

FAMILIES: dict[str, Family] = {}
"""All records by the name of their pipeline; `register_family` enters one."""
OWN: set[str] = set()
"""The names of the pipelines of diffusers whose records come with guidestack, which nobody replaces."""


def _entered(name: str) -> Family:
    if name not in FAMILIES:
        raise UnsupportedPipelineError(f"there is no family record for {name!r} here; enter it with register_family")
    return FAMILIES[name]


def register_family(record: Family) -> Family:
    """Register a family record, so that `guide` supports its pipeline class.

    Args:
        record: the record of a pipeline class that guidestack itself has none for; it replaces an earlier registration.

    Returns:
        The record.

    Raises:
        InputError: the record is incomplete or contradicts itself, or its pipeline has one that comes with
            guidestack.
    """
    if problem := _problem(record):
        raise InputError(problem)
    FAMILIES[record.pipeline] = record
    OTHERS.update(RUNNING[-1:])
    return record


def _problem(record: Any) -> str:
    """What is wrong with a record, in one line, or ""."""
    if not isinstance(record, Family):
        return f"register_family takes a Family, got {record!r}"
    if record.pipeline in OWN and FAMILIES[record.pipeline] is not record:
        return f"there is a family record for {record.pipeline!r} already; derive a class of another name"
    for name in ("pipeline", "denoiser", "sample"):
        if not str(getattr(record, name)).isidentifier():
            return f"{record.pipeline}: {name} must be a name, got {getattr(record, name)!r}"
    if "positive" not in record.halves or len(set(record.halves)) != len(record.halves):
        return f"{record.pipeline}: halves must be different conditions with 'positive' among them, got {record.halves}"
    if record.sequential and len(record.halves) < 2:
        return f"{record.pipeline}: sequential=True needs two halves, got {record.halves}"
    for name, named in (("embeds", record.embeds.values()), ("axes", record.axes), ("listed", record.listed)):
        if unknown := sorted({*named} - {"", *record.rows}):
            return f"{record.pipeline}: {name} has {unknown[0]!r}, which is none of rows: {', '.join(record.rows)}"
    if record.sample in record.rows:
        return f"{record.pipeline}: rows has {record.sample!r}, which is the sample; leave it out there"
    for name in ("guided", "unguided"):
        if unknown := sorted(set(getattr(record, name)) - set(record.owned)):
            return f"{record.pipeline}: {name} sets {unknown[0]!r}; name the rule that replaces it in owned"
    return ""
