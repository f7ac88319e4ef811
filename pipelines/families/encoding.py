"""Shared code of the records' encoders, which encode texts other than the pipeline's prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .record import Call, Pipeline


def encode_prompt(pipe: Pipeline, texts: Sequence[str], per: str = "image", **options: Any) -> Any:
    """What the pipeline's own ``encode_prompt`` returns for texts as prompts: one row a text, no negative ones.

    Args:
        pipe: the pipeline.
        texts: the texts.
        per: ``"image"`` or ``"video"``, whichever the pipeline counts the repetitions of a prompt by.
        **options: further arguments of ``encode_prompt``.
    """
    repeats = {f"num_{per}s_per_prompt": 1}
    return pipe.encode_prompt(
        list(texts), device=pipe._execution_device, do_classifier_free_guidance=False, **repeats, **options
    )


def lora_scale(call: Call, name: str) -> Any:
    """The scale of LoRA weights that a call asks for, in its dictionary of arguments `name`; None where it does not."""
    return (call.get(name) or {}).get("scale")


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
