"""Several negatives and several positives for each prompt: what Perp-Neg adds to a pipeline's arguments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..guidance.errors import InputError
from ..guidance.rule import Rule
from ..guidance.rules import PerpNeg
from .family import Call, Family, Pipeline, Rows

REPEATS = ("num_images_per_prompt", "num_videos_per_prompt", "num_waveforms_per_prompt")
EXTRA = "extra_prompt"
"""A guided call's own argument: positives beside the prompt."""


def per_prompt(value: Any, call: Call, name: str) -> list[list[str]]:
    """A list of texts for each prompt of the call.

    Args:
        value: a text for all prompts; for one prompt a list of texts; for several a text or a list of texts for each.
        call: the pipeline's arguments.
        name: of the argument, for messages.

    Raises:
        InputError: another form, or another number of lists than of prompts.
    """
    prompt = call.get("prompt")
    prompts = len(prompt) if isinstance(prompt, list | tuple) else 1
    if call.get("prompt_embeds") is not None:
        prompts = len(call["prompt_embeds"])
    if value is None or isinstance(value, str):
        return [[value] if value else []] * prompts
    texts = list(value) if isinstance(value, list | tuple) else [value]
    if isinstance(prompt, str) and all(isinstance(text, str) for text in texts):
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
    """Without the empty texts at the end; those between others keep their place, which is that of a weight."""
    kept = list(texts)
    while kept and not kept[-1]:
        kept.pop()
    return kept


@dataclass(frozen=True)
class Prompts:
    """What a stack asks for beside the halves that the pipeline evaluates by itself.

    Args:
        negatives: for each prompt, its negatives; the first is the pipeline's own.
        positives: for each prompt, the positives beside it.
    """

    negatives: list[list[str]]
    positives: list[list[str]]

    def counts(self, kind: str, repeats: int) -> tuple[int, ...]:
        """How many negatives or positives each sample has; each prompt stands for `repeats` samples."""
        return tuple(len(one) for one in getattr(self, kind) for _ in range(repeats))

    def unused_weights(self, stack: Rule) -> list[str]:
        """A line for each rule of `stack` that has more weights than any prompt has negatives, or positives."""
        lines = []
        for rule in stack.parts():
            if not isinstance(rule, PerpNeg):
                continue
            for what, weights, lists in (
                ("negative", rule.weights, self.negatives),
                ("further positive", rule.positive_weights, self.positives),
            ):
                most = max(map(len, lists), default=0)
                if isinstance(weights, tuple) and len(weights) > most:
                    lines.append(f"{rule} has {len(weights)} weights for {most} {what} prompts: the last are not used")
        return lines

    def encoded(self, pipe: Pipeline, family: Family, call: Call) -> dict[str, Rows]:
        """The row arguments of all but the first negative, one row a sample, by condition."""
        repeats = next((int(call[name]) for name in REPEATS if call.get(name)), 1)
        rows: dict[str, Rows] = {}
        for kind, lists, first in (("negative", self.negatives, 1), ("positive", self.positives, 0)):
            for index in range(first, max(map(len, lists), default=0)):
                texts = [one[index] if index < len(one) else "" for one in lists]
                name = f"{kind}:{index + 1 - first}"
                rows[name] = repeated(family, encode(pipe, family, call, texts, kind == "positive"), repeats)
        return rows


def encode(pipe: Pipeline, family: Family, call: Call, texts: Sequence[str], as_prompt: bool = False) -> Rows:
    """The row arguments of other prompts, one row each, encoded as the pipeline does it for negative ones or prompts.

    Raises:
        InputError: the pipeline has no prompts.
    """
    if family.encode is None:
        raise InputError(
            f"{type(pipe).__name__} has no way to encode prompts beside its own two; it cannot answer others"
        )
    with torch.no_grad():
        return family.encode(pipe, call, texts, as_prompt)


def repeated(family: Family, rows: Rows, repeats: int) -> Rows:
    """Every row `repeats` times, one after the other, as pipelines repeat a prompt for its images."""

    def each(value: Any, axis: int) -> Any:
        if isinstance(value, Tensor):
            return value.repeat_interleave(repeats, axis)
        if value is None:
            return None
        return [row for row in value for _ in range(repeats)]

    return {name: each(value, family.axes.get(name, 0)) for name, value in rows.items()}
