"""Chroma: two calls, the prompt's and the negative prompt's, flow on packed latents.

Read in diffusers 0.42.1, ``pipelines/chroma/pipeline_chroma.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from .encoding import encode_prompt, lora_scale, tokens
from .record import SEQUENTIAL, Call, Family, Pipeline, Rows, register_family


def _encode(pipe: Pipeline, call: Call, texts: Sequence[str], as_prompt: bool) -> Rows:
    embeddings, _, mask, *_ = encode_prompt(
        pipe,
        texts,
        max_sequence_length=tokens(call, 512, as_prompt, alone=True),
        lora_scale=lora_scale(call, "joint_attention_kwargs"),
    )
    return {"encoder_hidden_states": embeddings, "attention_mask": mask}


def _completed(arguments: Mapping[str, Any], rows: Rows) -> Rows:
    # The mask goes on over the samples' tokens, all of which are seen.
    mask = rows["attention_mask"]
    pictures = mask.new_ones(len(mask), arguments["hidden_states"].shape[1])
    return {**rows, "attention_mask": torch.cat([mask, pictures], 1)}


CHROMA = register_family(
    Family(
        pipeline="ChromaPipeline",
        rows=(
            "timestep",
            "encoder_hidden_states",
            "attention_mask",
            "joint_attention_kwargs.ip_adapter_image_embeds",
        ),
        **SEQUENTIAL,
        clock=lambda pipe, timestep: 1000 * timestep,
        scratch=("_guidance_scale", "_joint_attention_kwargs"),
        encode=_encode,
        embeds={"prompt_embeds": "encoder_hidden_states", "prompt_attention_mask": "attention_mask"},
        completed=_completed,
    )
)

register_family(replace(CHROMA, pipeline="ChromaImg2ImgPipeline"))
