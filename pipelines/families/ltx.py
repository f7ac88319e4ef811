"""LTX-Video: one call with [unconditional, conditional], flow on packed latents.

Read in diffusers 0.42.1, ``pipelines/ltx/pipeline_ltx.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from .encoding import encode_prompt, tokens
from .record import WITH_RESCALE, Call, Family, Pipeline, Rows, register_family


def _encode(pipe: Pipeline, call: Call, texts: Sequence[str], as_prompt: bool) -> Rows:
    embeddings, mask, *_ = encode_prompt(pipe, texts, per="video", max_sequence_length=tokens(call, 128, as_prompt))
    return {"encoder_hidden_states": embeddings, "encoder_attention_mask": mask}


LTX = register_family(
    Family(
        pipeline="LTXPipeline",
        rows=("encoder_hidden_states", "encoder_attention_mask", "timestep"),
        **WITH_RESCALE,
        upcasts=True,
        encode=_encode,
        embeds={"prompt_embeds": "encoder_hidden_states", "prompt_attention_mask": "encoder_attention_mask"},
    )
)


def _after_the_picture(pipe: Pipeline, arguments: Mapping[str, Any]) -> tuple[slice, ...]:
    # The first frame is the picture: it stays as it is, and what the network answers there goes nowhere.
    return (slice(arguments["hidden_states"].shape[1] // arguments["num_frames"], None),)


def _frames(pipe: Pipeline, arguments: Mapping[str, Any], samples: torch.Tensor) -> torch.Tensor:
    unpacked: torch.Tensor = pipe._unpack_latents(
        samples,
        arguments["num_frames"] - 1,
        arguments["height"],
        arguments["width"],
        pipe.transformer_spatial_patch_size,
        pipe.transformer_temporal_patch_size,
    )
    return unpacked


register_family(replace(LTX, pipeline="LTXImageToVideoPipeline", part=_after_the_picture, handed=_frames))
