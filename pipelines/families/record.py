"""Family records: the few facts about a diffusers pipeline that guiding it needs. One place a family.

A record says how the pipeline's own loop calls its denoiser and its scheduler. It holds no guidance.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ...guidance.errors import InputError, UnsupportedPipelineError

Pipeline = Any  # diffusers' DiffusionPipeline, which has no types
Call = Mapping[str, Any]
"""The arguments of one call of a pipeline, by name."""
Rows = Mapping[str, Any]
"""Row arguments of a denoiser, by name."""
Draw = Callable[[Rows, Sequence[torch.Generator]], Rows]
"""Makes the row arguments of a random condition."""


@dataclass(frozen=True)
class Family:
    """How one pipeline class calls its denoiser and its scheduler.

    Args:
        pipeline: name of the diffusers class.
        denoiser: name of the component that predicts.
        others: names of components that may be there and predict in its place in a part of a run (Wan 2.2).
        positional: names of the denoiser's arguments that the pipeline gives by position.
        sample: name of the one that holds the noisy samples.
        rows: the denoiser's other arguments that have one row for each row of the batch: the only ones that are sliced.
            A dot goes into a dictionary: ``"added_cond_kwargs.image_embeds"``. A list in one is sliced item by item.
        axes: the axis of the rows, of those of `rows` that do not have them on axis 0.
        listed: those of `rows` that are lists with an entry for each row; other lists hold tensors that have rows.
        unpack: from what the denoiser is handed as samples, and returns, to a tensor ``(B, ...)``.
        pack: and back.
        part: where, on the axes behind the batch, the noisy samples are in what the denoiser returns, and, under a
            scheduler that is not asked to scale them, in what it is handed: given the pipeline and the denoiser's
            arguments. () for all of it but learned variances. Rules see this part; the rest is as for the prompt.
        handed: ``handed(pipe, arguments, samples)``: that part of samples in the form in which the scheduler is handed
            it, where this is another.
        halves: the conditions of the pipeline's own guidance, in order; ``"negative"`` stands for its unconditional
            one.
        sequential: whether it evaluates them in one call each, one after the other, instead of in one batch.
        timestep: name of the denoiser's argument with the time.
        clock: from that argument to the scheduler's timestep, given the pipeline.
        negates: whether it negates what the denoiser returns before the scheduler gets it.
        upcasts: whether it casts what the denoiser returns to float32 before it combines the conditions; so do the
            rules then, in half precision as well.
        guided: the arguments with which the pipeline evaluates all halves. The values do not matter beyond that: what
            it gets back makes its own combination the identity.
        unguided: the arguments with which it evaluates the positive half only.
        filled: the arguments that it needs beside `guided` where the user gives none: an empty negative prompt.
        own: text of the rules that its own guidance applies behind its combination of two predictions.
        completed: ``completed(arguments, rows)``: those of `encode` with what depends on the samples, given the
            arguments of the pipeline's call for the prompt.
        owned: arguments that a user may not give, since rules replace them: name to the rule that does, "" where
            none does yet. The pipeline's default for them is not what the user asked for.
        halved: arguments that, with its own guidance on, it takes with a row for each of `halves`, in their order, and
            without it with one row: an IP-Adapter's pictures.
        keywords: names that the pipeline takes through ``**kwargs``; it ignores others there, which guide() does not.
        scratch: attributes that the pipeline sets on itself from those arguments; restored after the call.
        branches: whether the pipeline, in the middle of a call, is evaluating all halves; given it and the call.
        encode: ``encode(pipe, call, texts, as_prompt)``: the row arguments, one row a text, of other prompts, made by
            the pipeline's own encoders with the call's own options, as it does for prompts or as for negative ones.
            None where there are no texts.
        embeds: the pipeline's arguments for the embeddings of a prompt, each with the row argument that it becomes, or
            "" where the denoiser is not given it. With ``negative_`` before it each is that of a negative prompt.
        zeros: whether the pipeline evaluates zeros where it is given no ``negative_prompt``, and the encoded text where
            it is given an empty one. Zeros are then its empty condition.
        random: for each source that `ICG` may name: ``draw(pipe, rows, generators)``, the row arguments of a random
            condition, one row a sample, given those of the prompt and a generator for each sample.
        cannot: why this pipeline has no unconditional branch, or "".
        embedded: name of the argument with the guidance scale that this pipeline's network takes as an input, having
            been distilled from guided runs, or "". It stays the user's.
        offset: what its own scale lacks of that of `cfg`: 1 where it counts from 0. The two then agree to rounding.
        example: ``example(pipe, batch)``: the arguments of a small call for so many samples that the names of the
            pipeline's arguments do not give away; for `doctor`.
    """

    pipeline: str
    denoiser: str
    positional: tuple[str, ...]
    sample: str
    rows: tuple[str, ...]
    guided: Mapping[str, Any]
    unguided: Mapping[str, Any]
    owned: Mapping[str, str]
    branches: Callable[[Pipeline, Call], bool]
    cannot: Callable[[Pipeline], str]
    encode: Callable[[Pipeline, Call, Sequence[str], bool], Rows] | None = None
    embeds: Mapping[str, str] = field(default_factory=dict)
    zeros: Callable[[Pipeline], bool] = lambda pipe: False
    random: Mapping[str, Callable[[Pipeline, Rows, Sequence[torch.Generator]], Rows]] = field(default_factory=dict)
    halves: tuple[str, ...] = ("negative", "positive")
    axes: Mapping[str, int] = field(default_factory=dict)
    listed: tuple[str, ...] = ()
    unpack: Callable[[Any], torch.Tensor] = lambda samples: samples
    pack: Callable[[torch.Tensor], Any] = lambda samples: samples
    part: Callable[[Pipeline, Mapping[str, Any]], tuple[slice, ...]] = lambda pipe, arguments: ()
    handed: Callable[[Pipeline, Mapping[str, Any], torch.Tensor], torch.Tensor] = lambda pipe, arguments, samples: (
        samples
    )
    own: str = ""
    completed: Callable[[Mapping[str, Any], Rows], Rows] = lambda arguments, rows: rows
    filled: Mapping[str, Any] = field(default_factory=dict)
    others: tuple[str, ...] = ()
    sequential: bool = False
    timestep: str = "timestep"
    clock: Callable[[Pipeline, float], float] = lambda pipe, timestep: timestep
    negates: bool = False
    upcasts: bool = False
    embedded: Callable[[Pipeline], str] = lambda pipe: ""
    halved: tuple[str, ...] = ()
    keywords: tuple[str, ...] = ()
    scratch: tuple[str, ...] = ()
    offset: float = 0.0
    example: Callable[[Pipeline, int], Call] = lambda pipe, batch: {}

    @property
    def scale(self) -> str:
        """The argument with the scale of its own guidance, as `owned` tells it; "" where there is none."""
        return next((name for name in self.guided if self.owned.get(name, "").startswith("cfg(scale")), "")

    def __reduce_ex__(self, protocol: Any) -> Any:
        """An entered record is copied and pickled as its name, and found by it: its functions cannot be pickled."""
        return (_entered, (self.pipeline,)) if FAMILIES.get(self.pipeline) is self else super().__reduce_ex__(protocol)


FAMILIES: dict[str, Family] = {}


def tokens(call: Call, default: int, as_prompt: bool, *, alone: bool = False, more: int = 0) -> int:
    """How many tokens the embeddings of another prompt of a call must have, where the pipeline pads all prompts alike.

    Args:
        call: the pipeline's arguments.
        default: the pipeline's own `max_sequence_length`.
        as_prompt: whether they stand beside the prompt, not beside the negative one.
        alone: whether prompt and negative prompt are evaluated by calls of their own, and may differ in length.
        more: tokens of the embeddings that `max_sequence_length` does not count.

    Returns:
        What `max_sequence_length` is, or has to be so that they are as long as the embeddings that were given.
    """
    own, other = "prompt_embeds", "negative_prompt_embeds"
    if not as_prompt:
        own, other = other, own
    for name in (own,) if alone else (own, other):
        if call.get(name) is not None:
            return int(call[name].shape[1]) - more
    return int(call.get("max_sequence_length", default))


def _entered(name: str) -> Family:
    if name not in FAMILIES:
        raise UnsupportedPipelineError(f"there is no family record for {name!r} here; enter it with register_family")
    return FAMILIES[name]


def register_family(record: Family) -> Family:
    """Enter a record, so that `guide` takes its pipeline.

    Args:
        record: of a pipeline that has none yet.

    Returns:
        The record.

    Raises:
        InputError: the record is incomplete or contradicts itself, or its pipeline has one.
    """
    if problem := _problem(record):
        raise InputError(problem)
    FAMILIES[record.pipeline] = record
    return record


def _problem(record: Any) -> str:
    """What is wrong with a record, one line; "" where nothing is."""
    if not isinstance(record, Family):
        return f"register_family takes a Family, got {record!r}"
    if record.pipeline in FAMILIES and FAMILIES[record.pipeline] is not record:
        return f"there is a family record for {record.pipeline!r} already; derive a class of another name"
    for name in ("pipeline", "denoiser", "sample"):
        if not str(getattr(record, name)).isidentifier():
            return f"{record.pipeline}: {name} must be a name, got {getattr(record, name)!r}"
    if "positive" not in record.halves or len(set(record.halves)) != len(record.halves):
        return f"{record.pipeline}: halves must be different conditions with 'positive' among them, got {record.halves}"
    if record.sequential and len(record.halves) < 2:
        return f"{record.pipeline}: sequential=True needs two halves, got {record.halves}"
    if unknown := sorted({*record.embeds.values()} - {"", *record.rows}):
        return f"{record.pipeline}: embeds has {unknown[0]!r}, which is none of rows: {', '.join(record.rows)}"
    for field_name in ("axes", "listed"):
        if unknown := sorted(set(getattr(record, field_name)) - set(record.rows)):
            return (
                f"{record.pipeline}: {field_name} has {unknown[0]!r}, which is none of rows: {', '.join(record.rows)}"
            )
    if record.sample in record.rows:
        return f"{record.pipeline}: rows has {record.sample!r}, which is the sample; leave it out there"
    for field_name in ("guided", "unguided"):
        if unknown := sorted(set(getattr(record, field_name)) - set(record.owned)):
            return f"{record.pipeline}: {field_name} sets {unknown[0]!r}; name the rule that replaces it in owned"
    return ""
