"""Chroma: two calls, the prompt's and the negative prompt's, flow on packed latents.

Read in diffusers 0.42.1, ``pipelines/chroma/pipeline_chroma.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from .record import FAMILIES, Call, Family, Pipeline, Rows, tokens


def _encode(pipe: Pipeline, call: Call, texts: Sequence[str], as_prompt: bool) -> Rows:
    embeddings, _, mask, *_ = pipe.encode_prompt(
        list(texts),
        do_classifier_free_guidance=False,
        device=pipe._execution_device,
        num_images_per_prompt=1,
        max_sequence_length=tokens(call, 512, as_prompt, alone=True),
        lora_scale=(call.get("joint_attention_kwargs") or {}).get("scale"),
    )
    return {"encoder_hidden_states": embeddings, "attention_mask": mask}


def _completed(arguments: Mapping[str, Any], rows: Rows) -> Rows:
    # The mask goes on over the samples' tokens, all of which are seen.
    mask = rows["attention_mask"]
    pictures = mask.new_ones(len(mask), arguments["hidden_states"].shape[1])
    return {**rows, "attention_mask": torch.cat([mask, pictures], 1)}


FAMILIES["ChromaPipeline"] = Family(
    pipeline="ChromaPipeline",
    denoiser="transformer",
    positional=(),
    sample="hidden_states",
    rows=(
        "timestep",
        "encoder_hidden_states",
        "attention_mask",
        "joint_attention_kwargs.ip_adapter_image_embeds",
    ),
    halves=("positive", "negative"),
    sequential=True,
    clock=lambda pipe, timestep: 1000 * timestep,
    guided={"guidance_scale": 2.0},
    unguided={"guidance_scale": 1.0},
    owned={"guidance_scale": "cfg(scale)"},
    scratch=("_guidance_scale", "_joint_attention_kwargs"),
    branches=lambda pipe, call: bool(pipe.do_classifier_free_guidance),
    encode=_encode,
    embeds={"prompt_embeds": "encoder_hidden_states", "prompt_attention_mask": "attention_mask"},
    completed=_completed,
    cannot=lambda pipe: "",
)

FAMILIES["ChromaImg2ImgPipeline"] = replace(FAMILIES["ChromaPipeline"], pipeline="ChromaImg2ImgPipeline")
