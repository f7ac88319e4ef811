"""HunyuanDiT: one call with [unconditional, conditional]; two text encoders; learned variances that are dropped.

Read in diffusers 0.42.1, ``pipelines/hunyuandit/pipeline_hunyuandit.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from .encoding import encode_prompt
from .record import WITH_RESCALE, Call, Family, Pipeline, Rows, register_family


def _encode(pipe: Pipeline, call: Call, texts: Sequence[str], as_prompt: bool) -> Rows:
    rows: dict[str, torch.Tensor] = {}
    for index, (suffix, length) in enumerate((("", 77), ("_t5", 256))):
        embeddings, _, mask, _ = encode_prompt(
            pipe, texts, dtype=pipe.transformer.dtype, max_sequence_length=length, text_encoder_index=index
        )
        rows |= {f"encoder_hidden_states{suffix}": embeddings, f"text_embedding_mask{suffix}": mask}
    return rows


HUNYUAN_DIT = register_family(
    Family(
        pipeline="HunyuanDiTPipeline",
        positional=("hidden_states", "timestep"),
        rows=(
            "timestep",
            "encoder_hidden_states",
            "text_embedding_mask",
            "encoder_hidden_states_t5",
            "text_embedding_mask_t5",
            "image_meta_size",
            "style",
        ),
        **WITH_RESCALE,
        encode=_encode,
        embeds={
            "prompt_embeds": "encoder_hidden_states",
            "prompt_attention_mask": "text_embedding_mask",
            "prompt_embeds_2": "encoder_hidden_states_t5",
            "prompt_attention_mask_2": "text_embedding_mask_t5",
        },
    )
)

CONTROLNET = (*HUNYUAN_DIT.rows, "controlnet_block_samples")
register_family(replace(HUNYUAN_DIT, pipeline="HunyuanDiTControlNetPipeline", rows=CONTROLNET))
