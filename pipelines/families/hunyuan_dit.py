"""HunyuanDiT: one call with [unconditional, conditional]; two text encoders; learned variances that are dropped.

Read in diffusers 0.42.1, ``pipelines/hunyuandit/pipeline_hunyuandit.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from .record import FAMILIES, Call, Family, Pipeline, Rows


def _encode(pipe: Pipeline, call: Call, texts: Sequence[str], as_prompt: bool) -> Rows:
    rows: dict[str, torch.Tensor] = {}
    for index, (suffix, length) in enumerate((("", 77), ("_t5", 256))):
        embeddings, _, mask, _ = pipe.encode_prompt(
            list(texts),
            device=pipe._execution_device,
            dtype=pipe.transformer.dtype,
            num_images_per_prompt=1,
            do_classifier_free_guidance=False,
            max_sequence_length=length,
            text_encoder_index=index,
        )
        rows |= {f"encoder_hidden_states{suffix}": embeddings, f"text_embedding_mask{suffix}": mask}
    return rows


FAMILIES["HunyuanDiTPipeline"] = Family(
    pipeline="HunyuanDiTPipeline",
    denoiser="transformer",
    positional=("hidden_states", "timestep"),
    sample="hidden_states",
    rows=(
        "timestep",
        "encoder_hidden_states",
        "text_embedding_mask",
        "encoder_hidden_states_t5",
        "text_embedding_mask_t5",
        "image_meta_size",
        "style",
    ),
    guided={"guidance_scale": 2.0, "guidance_rescale": 0.0},
    unguided={"guidance_scale": 1.0, "guidance_rescale": 0.0},
    owned={"guidance_scale": "cfg(scale)", "guidance_rescale": "rescale(phi)"},
    scratch=("_guidance_scale", "_guidance_rescale"),
    branches=lambda pipe, call: bool(pipe.do_classifier_free_guidance),
    encode=_encode,
    embeds={
        "prompt_embeds": "encoder_hidden_states",
        "prompt_attention_mask": "text_embedding_mask",
        "prompt_embeds_2": "encoder_hidden_states_t5",
        "prompt_attention_mask_2": "text_embedding_mask_t5",
    },
    cannot=lambda pipe: "",
)

FAMILIES["HunyuanDiTControlNetPipeline"] = replace(
    FAMILIES["HunyuanDiTPipeline"],
    pipeline="HunyuanDiTControlNetPipeline",
    rows=(*FAMILIES["HunyuanDiTPipeline"].rows, "controlnet_block_samples"),
)
