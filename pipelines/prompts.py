"""The conditions of a call beside its prompt: negatives, further positives, and the empty condition."""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..guidance.errors import InputError, nearest, shown
from ..guidance.rule import Rule
from .families.lookup import signature_of
from .families.record import Call, Family, Pipeline, Rows

REPEATS = ("num_images_per_prompt", "num_videos_per_prompt", "num_waveforms_per_prompt")
EXTRA = "extra_prompt"
"""A guided call's own argument: positives beside the prompt."""
NULL = "null_embeds"
"""A guided call's own argument: the embeddings of the empty condition."""
TEXT = re.compile(r"negative_prompt(_\d+)?")
"""Arguments of pipelines with texts of a negative prompt."""
EMBEDDED = re.compile(r"negative_(\w+_)?prompt_embeds(_\w+)?")
"""Arguments of pipelines with embeddings of a negative prompt."""


def number_of_prompts(call: Call) -> int:
    """How many prompts a call has; 1 of a pipeline without any."""
    for name in ("prompt_embeds", "pooled_prompt_embeds", "prompt"):
        if isinstance(value := call.get(name), list | tuple | Tensor):
            return len(value)
    return 1


def per_prompt(value: Any, call: Call, name: str) -> list[list[str]]:
    """A list of texts for each prompt of the call.

    Args:
        value: a text for all prompts; for one prompt a list of texts; for several a text or a list of texts for each.
        call: the pipeline's arguments.
        name: of the argument, for messages.

    Raises:
        InputError: another form, or another number of lists than of prompts.
    """
    prompts = number_of_prompts(call)
    if value is None or isinstance(value, str):
        return [[value] if value else []] * prompts
    texts = list(value) if isinstance(value, list | tuple) else [value]
    if isinstance(call.get("prompt"), str) and all(isinstance(text, str) for text in texts):
        texts = [texts]
    if len(texts) != prompts:
        raise InputError(
            f"{name} has {len(texts)} entries for {prompts} prompts; give a text or a list for each prompt"
        )
    lists = [[text] if isinstance(text, str) else text for text in texts]
    for one in lists:
        if not isinstance(one, list | tuple) or not all(isinstance(text, str) for text in one):
            raise InputError(f"{name} takes texts, or for each prompt a list of texts; got {one!r}")
    return [_trimmed(one) for one in lists]


def _trimmed(texts: Sequence[str]) -> list[str]:
    """Drop the empty texts at the end; those between others keep their place, which is that of a weight."""
    kept = list(texts)
    while kept and not kept[-1]:
        kept.pop()
    return kept


@dataclass(frozen=True)
class Prompts:
    """The conditions of a call beside its prompts: negatives, further positives, and given embeddings.

    Args:
        negatives: for each prompt, its negatives; the first is the pipeline's own. A prompt has one if any of the
            pipeline's arguments for negative texts or embeddings has one for it.
        positives: for each prompt, the positives beside it.
        empty: whether the pipeline's own unconditional half is the empty condition, for every prompt.
        embedded: row arguments that were given as embeddings, one row a prompt, by condition.
        remarks: lines that the user is to be warned with.
    """

    negatives: list[list[str]]
    positives: list[list[str]]
    empty: bool = True
    embedded: Mapping[str, Rows] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    @property
    def first(self) -> bool:
        """Whether the first negative of a prompt is not empty."""
        return any(one and one[0] for one in self.negatives)

    def counts(self, kind: str, repeats: int) -> tuple[int, ...]:
        """How many negatives or positives each sample has; each prompt stands for `repeats` samples."""
        return tuple(len(one) for one in getattr(self, kind) for _ in range(repeats))

    def unused_weights(self, stack: Rule) -> list[str]:
        """A line for each rule of `stack` that has more weights than any prompt has negatives, or positives."""
        there = {"negative": ("negative", self.negatives), "positive": ("further positive", self.positives)}
        lines = []
        for rule in stack.parts():
            for kind, count in rule.weight_counts.items():
                what, lists = there[kind]
                if count > (most := max(map(len, lists), default=0)):
                    lines.append(f"{rule} has {count} weights for {most} {what} prompts: the last are not used")
        return lines

    def encoded(self, pipe: Pipeline, family: Family, call: Call, wanted: Collection[str]) -> dict[str, Rows]:
        """The row arguments of the conditions among `wanted` that the pipeline does not evaluate by itself.

        Args:
            pipe: the pipeline.
            family: its record.
            call: the pipeline's arguments.
            wanted: conditions that the stack asks for.

        Returns:
            By condition, one row a sample, or one for all.

        Raises:
            InputError: a text has to be encoded and cannot be.
        """
        repeats = next((int(call[name]) for name in REPEATS if call.get(name)), 1)
        rows = {name: repeated(family, one, repeats) for name, one in self.embedded.items()}
        if "null" in wanted and not self.empty and "null" not in rows:
            rows["null"] = encode(pipe, family, call, [""])
        if "negative:each" not in wanted:
            return rows
        # An empty negative before others has to be the empty condition, and the pipeline's own half may be another.
        first = 0 if self.first and any(one and not one[0] for one in self.negatives) else 1
        for kind, lists, start, name_of_first in (
            ("negative", self.negatives, first, 0),
            ("positive", self.positives, 0, 1),
        ):
            for index in range(start, max(map(len, lists), default=0)):
                name = f"{kind}:{index + name_of_first}"
                if name not in rows:
                    texts = [one[index] if index < len(one) else "" for one in lists]
                    rows[name] = repeated(family, encode(pipe, family, call, texts, kind == "positive"), repeats)
        return rows

    def negative_rows(self, pipe: Pipeline, family: Family, call: Call) -> Rows:
        """The row arguments of the negative prompt, or of the empty one, where the pipeline does not encode it itself.

        Raises:
            InputError: a text has to be encoded and cannot be.
        """
        repeats = next((int(call[name]) for name in REPEATS if call.get(name)), 1)
        given = {name: call.get(f"negative_{name}") for name in family.embeds}
        if given and all(value is not None for value in given.values()):
            return repeated(family, _rows(family, given), repeats)
        texts = [one[0] if one else "" for one in self.negatives]
        return repeated(family, encode(pipe, family, call, texts), repeats)


def uses_negative(stack: Rule) -> bool:
    """Whether a negative prompt makes a difference under `stack`."""
    asked = {query.condition for query in stack.asks()} | {edit.text for edit in stack.own_pass}
    return any(one.startswith(("negative", "image")) for one in asked)


def asked(
    pipe: Pipeline, family: Family, stack: Rule, call: dict[str, Any], extra: Any = None, null: Any = None
) -> Prompts:
    """What a call says of conditions beside the prompt; what the pipeline itself takes of it stays in `call`.

    Args:
        pipe: the pipeline.
        family: its record.
        stack: the stack of the call.
        call: the pipeline's arguments as the user gave them; changed to those that the pipeline takes.
        extra: positives beside the prompt, or None.
        null: embeddings of the empty condition, or None.

    Raises:
        InputError: something is given that no rule uses, or that does not fit the prompts.
    """
    conditions = {query.condition for query in stack.asks()}
    several, prompts = "negative:each" in conditions, number_of_prompts(call)
    negative, further = call.get("negative_prompt"), _further(family, call, prompts)
    nested = isinstance(negative, list | tuple) and any(isinstance(one, list | tuple) for one in negative)
    for given, what in (
        (extra is not None, EXTRA),
        (nested, "a list of negatives for each prompt"),
        (further, "a list of negative embeddings"),
    ):
        if given and not several:
            raise InputError(f"{what} was given, and no rule of {stack} uses it; perpneg(scale) does")
    negatives, positives = per_prompt(negative, call, "negative_prompt"), per_prompt(extra, call, EXTRA)
    if several and negative is not None:
        firsts = [one[0] if one else "" for one in negatives]
        call["negative_prompt"] = firsts[0] if isinstance(call.get("prompt"), str) else firsts

    embeddings = [name for name, value in call.items() if EMBEDDED.fullmatch(name) and value is not None]
    texts = [name for name, value in call.items() if TEXT.fullmatch(name) and value is not None]
    remarks: list[str] = []
    if family.zeros(pipe) and negative is None and not embeddings:
        for name in texts:
            remarks.append(f"{name} does nothing in {type(pipe).__name__} without negative_prompt; give that too")
            del call[name]
        texts = []
    for name in texts:
        if name != "negative_prompt":
            negatives = _with_text(negatives, call, name)
    if embeddings:
        negatives = [["(embedded)"] * (1 + len(further))] * prompts

    given_negative = bool(texts or embeddings)
    if null is not None:
        named = _named(family, null)
        used = {"null"} if given_negative else {"null", *family.halves} - {"positive"}
        if conditions.isdisjoint(used):
            raise InputError(f"{NULL} was given, and no rule of {stack} uses it")
        named = {name: _one_each(family, name, value, prompts, NULL) for name, value in named.items()}
        further["null"] = _rows(family, named)
        if not given_negative:
            _check_lengths(family, call, named)
            call |= {f"negative_{name}": value for name, value in named.items()}
            if "negative_prompt" in inspect.signature(pipe.__call__).parameters:
                call["negative_prompt"] = None  # some have an empty text by default, and do not take both
    # A pipeline encodes an empty text that it is given, also where its empty condition is another.
    empty = not given_negative if null is not None or family.zeros(pipe) else not any(negatives)
    return Prompts(negatives, positives, empty, further, tuple(remarks))


def _check_lengths(family: Family, call: Call, named: Mapping[str, Any]) -> None:
    """Refuse embeddings of the empty condition that cannot stand beside those of the prompt in the pipeline's call.

    Raises:
        InputError: their shapes differ.
    """
    for name, value in named.items():
        own = call.get(name)
        if not isinstance(value, Tensor) or not isinstance(own, Tensor):
            continue  # lists have rows of any length
        axis, first = family.axes.get(family.embeds[name], 0), 1 if family.sequential and not family.alike else 0
        shapes = [[*one.shape[:axis], *one.shape[axis + 1 :]] for one in (value, own)]
        if shapes[0][first:] != shapes[1][first:]:
            raise InputError(
                f"{NULL}: {name} has rows of shape {shapes[0]}, and {name} of the call has {shapes[1]}; give {NULL} "
                "with as many tokens as the embeddings of the prompt"
            )


def check_encoders(pipe: Pipeline, family: Family, call: Call, halves: bool) -> None:
    """Refuse texts that the pipeline itself would encode with a text encoder that is not there.

    Args:
        pipe: the pipeline.
        family: its record.
        call: the pipeline's arguments.
        halves: whether the pipeline evaluates a negative prompt too.

    Raises:
        InputError: there are such texts.
    """
    if family.encode is None or not _missing(pipe):
        return
    negative, given = call.get("negative_prompt"), [name for name in call if call[name] is not None]
    if call.get("prompt") is not None:
        text = _first(call["prompt"])
        encode(pipe, family, call, [text], True, "give prompt_embeds")
    elif halves and not any(map(EMBEDDED.fullmatch, given)) and (negative is not None or not family.zeros(pipe)):
        text = _first(negative)
        encode(pipe, family, call, [text], instead="give embeddings: negative_prompt_embeds" if text else "")


def _first(texts: Any) -> str:
    """The first of some texts that is not empty, if there is one."""
    return next(filter(None, [texts] if isinstance(texts, str) else texts or ()), "")


def length_of_texts(pipe: Pipeline, family: Family, call: Call) -> int | None:
    """The `max_sequence_length` with which the pipeline pads a negative text to the length of `prompt_embeds`.

    None where the pipeline encodes no text beside embeddings, or has no need for it, or cannot.
    """
    own = call.get("prompt_embeds")
    if not isinstance(own, Tensor) or call.get("negative_prompt_embeds") is not None or family.sequential:
        return None
    length = own.shape[1] - family.uncounted(pipe) if own.ndim == 3 else 0
    return length if length > 0 and "max_sequence_length" in signature_of(pipe).parameters else None


def _with_text(negatives: list[list[str]], call: Call, name: str) -> list[list[str]]:
    """`negatives`, where a prompt has one too if the argument `name`, for a further text encoder, has a text for it.

    Raises:
        InputError: it has several texts for a prompt, or further negatives would not find their place.
    """
    if not any(texts := per_prompt(call[name], call, name)):
        return negatives
    merged = []
    for one, beside in zip(negatives, texts, strict=True):
        if len(beside) > 1:
            raise InputError(f"{name} takes one text for each prompt, got {beside!r}; negative_prompt takes several")
        if one and not one[0]:
            raise InputError(f"{name} was given beside negatives of which the first is empty; leave that one out")
        merged.append(one or beside)
    return merged


def _further(family: Family, call: dict[str, Any], prompts: int) -> dict[str, Rows]:
    """Take all but the first of several negatives given as embeddings out of `call`: their rows by condition.

    Raises:
        InputError: the arguments are not lists of one length.
    """
    given = {}
    for name, row in family.embeds.items():
        value = call.get(f"negative_{name}")
        if not isinstance(value, list | tuple):
            continue
        if row not in family.listed or all(isinstance(one, list | tuple) for one in value):
            given[name] = list(value)
    if not given:
        return {}
    if len(lengths := {len(value) for value in given.values()}) > 1 or 0 in lengths:
        told = ", ".join(f"negative_{name} {len(value)}" for name, value in given.items())
        raise InputError(f"each of several negatives needs all of its embeddings; got {told}")
    call |= {f"negative_{name}": value[0] for name, value in given.items()}
    found = {}
    for index in range(1, lengths.pop()):
        named = _named(family, {name: value[index] for name, value in given.items()}, "negative_")
        ready = {name: _one_each(family, name, value, prompts, f"negative_{name}") for name, value in named.items()}
        found[f"negative:{index}"] = _rows(family, ready)
    return found


def _named(family: Family, given: Any, prefix: str = "") -> dict[str, Any]:
    """Embeddings by the pipeline's names for those of a prompt.

    Raises:
        InputError: names are missing or unknown.
    """
    what = NULL if not prefix else "several negatives"
    if not family.embeds:
        raise InputError(f"{what}: {family.pipeline} has no way to take embeddings of further conditions")
    named = dict(given) if isinstance(given, Mapping) else {next(iter(family.embeds)): given}
    names = [prefix + name for name in family.embeds]
    for name in named:
        if name not in family.embeds:
            raise InputError(f"{what}: {family.pipeline} has no {prefix}{name}{nearest(f'{prefix}{name}', names)}")
    if missing := [prefix + name for name in family.embeds if name not in named]:
        raise InputError(f"{what}: {missing[0]} is missing; {family.pipeline} needs {', '.join(names)}")
    return named


def _one_each(family: Family, name: str, value: Any, prompts: int, what: str) -> Any:
    """Embeddings with a row for each prompt, where they have that or one for all.

    Raises:
        InputError: another number of rows, or no tensors.
    """
    row, given = family.embeds[name], value
    axis, listed = family.axes.get(row, 0), row in family.listed
    if listed and isinstance(value, Tensor) and value.ndim == 2:
        value = [value]
    tensors = value if listed else [value]
    if value is None:
        return None
    if not isinstance(tensors, list | tuple) or not all(isinstance(one, Tensor) and one.ndim > axis for one in tensors):
        raise InputError(f"{what}: {name} has to be a tensor with a row for each prompt, got {type(given).__name__}")
    rows = len(value) if listed else value.shape[axis]
    if rows not in (1, prompts):
        raise InputError(f"{what}: {name} has {rows} rows for {prompts} prompts; give one for all, or one for each")
    if rows == prompts:
        return value
    return list(value) * prompts if listed else value.repeat_interleave(prompts, axis)


def _rows(family: Family, named: Mapping[str, Any]) -> Rows:
    """Embeddings as row arguments of the denoiser."""
    return {row: named[name] for name, row in family.embeds.items() if row}


def encode(
    pipe: Pipeline, family: Family, call: Call, texts: Sequence[str], as_prompt: bool = False, instead: str = ""
) -> Rows:
    """The row arguments of other prompts, one row each, encoded as the pipeline does it for negative ones or prompts.

    Raises:
        InputError: the pipeline has no prompts, or no text encoder.
    """
    zeros = not as_prompt and family.zeros(pipe)
    if zeros and not any(texts) and (rows := _zeros(family, call, len(texts))):
        return rows
    if family.encode is None:
        raise InputError(
            f"{type(pipe).__name__} has no way to encode prompts beside its own two; it cannot answer others"
        )
    missing = _missing(pipe)
    instead = instead or (f"give embeddings: {NULL}" if not any(texts) else "give negatives as lists of embeddings")
    refusal = (
        f"{shown(_first(texts)) if any(texts) else 'the empty prompt'} has to be encoded, and "
        f"{' and '.join(missing)} of {type(pipe).__name__} {'is' if len(missing) == 1 else 'are'} None; {instead}"
    )
    try:
        with torch.no_grad():
            rows = family.encode(pipe, call, texts, as_prompt)
    except (AttributeError, TypeError, ValueError) as error:
        if missing:  # some pipelines do without one of several, and an `encode_prompt` of one's own without all
            raise InputError(refusal) from error
        raise
    if zeros:
        empty = torch.tensor([not text for text in texts])
        rows = {name: _blank(value, empty) for name, value in rows.items()}
    return rows


def _missing(pipe: Pipeline) -> list[str]:
    """Names of the text encoders of a pipeline that are None."""
    parts = [name for name in inspect.signature(type(pipe).__init__).parameters if name.startswith("text_encoder")]
    return [name for name in parts if getattr(pipe, name, None) is None]


def _blank(value: Tensor, rows: Tensor) -> Tensor:
    """`value` with zeros in the rows of a mask."""
    return value.masked_fill(rows.to(value.device, non_blocking=True).reshape(-1, *[1] * (value.ndim - 1)), 0)


def _zeros(family: Family, call: Call, count: int) -> Rows:
    """Zeros in the place of so many prompts, in the shape of the embeddings of the call; nothing if it has texts."""
    own = _rows(family, {name: call.get(name) for name in family.embeds})
    if any(value is None for value in own.values()):
        return {}
    return {name: value.new_zeros(count, *value.shape[1:]) for name, value in own.items()}


def repeated(family: Family, rows: Rows, repeats: int) -> Rows:
    """Every row `repeats` times, one after the other, as pipelines repeat a prompt for its images."""

    def each(value: Any, axis: int) -> Any:
        if isinstance(value, Tensor):
            return value.repeat_interleave(repeats, axis)
        if value is None:
            return None
        return [row for row in value for _ in range(repeats)]

    return {name: each(value, family.axes.get(name, 0)) for name, value in rows.items()}
