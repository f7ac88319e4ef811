"""Weights in prompts, such as ``a red++ (fox)1.3``: read and encoded by compel (the extra ``weights``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...guidance.errors import InputError, UnsupportedPipelineError, shown
from ..families.lookup import family_of
from ..families.record import Pipeline
from .loading import first_line

ENCODERS = {"StableDiffusionXL": "CompelForSDXL", "StableDiffusion": "CompelForSD"}
"""Beginnings of names of pipelines, and compel's class for each; of two the longer one counts."""
PARTS = {
    "prompt_embeds": "embeds",
    "pooled_prompt_embeds": "pooled_embeds",
    "negative_prompt_embeds": "negative_embeds",
    "negative_pooled_prompt_embeds": "negative_pooled_embeds",
}
"""A pipeline's arguments, and what compel calls them."""


def encoder_of(pipe: Pipeline) -> Any:
    """What encodes weighted prompts for a pipeline.

    Raises:
        InputError: compel is not installed.
        UnsupportedPipelineError: it encodes no prompts of such a pipeline.
    """
    try:
        import compel
    except ImportError as error:
        raise InputError("--weights needs compel: pip install 'guidestack[weights]'") from error
    name = family_of(pipe).pipeline
    found = next((cls for start, cls in ENCODERS.items() if name.startswith(start)), None)
    if found is None or name.startswith("StableDiffusion3"):
        raise UnsupportedPipelineError(f"--weights is for Stable Diffusion 1, 2 and XL; this is a {name}")
    return getattr(compel, found)(pipe)


def weighted(pipe: Pipeline, prompts: Sequence[str], negatives: Sequence[str]) -> dict[str, Tensor]:
    """The arguments of a pipeline for prompts with weights. Each is encoded by itself, whatever it is made beside.

    Args:
        pipe: the pipeline.
        prompts: a text for each sample.
        negatives: likewise; where all are empty, there is no negative prompt.

    Raises:
        InputError: compel is not installed or cannot read a text, or texts of different lengths stand in one batch.
        UnsupportedPipelineError: as `encoder_of`.
    """
    encode = encoder_of(pipe)
    rows: list[dict[str, Tensor]] = []
    with torch.no_grad():
        for prompt, negative in zip(prompts, negatives, strict=True):
            try:
                answer = encode(prompt, negative_prompt=negative if any(negatives) else None)
            except Exception as error:  # of its grammar, and of whatever a text leads it to
                raise InputError(f"compel cannot read the prompt {shown(prompt)}: {first_line(error)}") from error
            values = {name: getattr(answer, part) for name, part in PARTS.items()}
            rows.append({name: value for name, value in values.items() if value is not None})
    if len({value.shape for row in rows for name, value in row.items() if "pooled" not in name}) > 1:
        raise InputError(
            "weighted prompts that are longer than the text encoder reads cannot share a batch; give --batch 1"
        )
    return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
