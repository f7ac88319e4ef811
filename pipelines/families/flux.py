"""FLUX.1: two calls, the prompt's and the negative prompt's, flow on packed latents.

Its distilled guidance, ``guidance_scale``, is an input of the network and stays the user's.

Read in diffusers 0.42.1, ``pipelines/flux/pipeline_flux.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from .encoding import lora_scale, tokens
from .record import TRUE_CFG, Call, Family, Pipeline, Rows, register_family


def _encode(pipe: Pipeline, call: Call, texts: Sequence[str], as_prompt: bool) -> Rows:
    embeddings, pooled, _ = pipe.encode_prompt(
        list(texts),
        None,
        device=pipe._execution_device,
        num_images_per_prompt=1,
        max_sequence_length=tokens(call, 512, as_prompt, alone=True),
        lora_scale=lora_scale(call, "joint_attention_kwargs"),
    )
    return {"encoder_hidden_states": embeddings, "pooled_projections": pooled}


FLUX = register_family(
    Family(
        pipeline="FluxPipeline",
        rows=(
            "timestep",
            "guidance",
            "pooled_projections",
            "encoder_hidden_states",
            "joint_attention_kwargs.ip_adapter_image_embeds",
        ),
        **TRUE_CFG,
        clock=lambda pipe, timestep: 1000 * timestep,
        scratch=("_guidance_scale", "_joint_attention_kwargs"),
        encode=_encode,
        alike=True,
        embeds={"prompt_embeds": "encoder_hidden_states", "pooled_prompt_embeds": "pooled_projections"},
    )
)

for name in ("FluxImg2ImgPipeline", "FluxInpaintPipeline"):
    register_family(replace(FLUX, pipeline=name))
CONTROLNET = (*FLUX.rows, "controlnet_block_samples", "controlnet_single_block_samples")
register_family(replace(FLUX, pipeline="FluxControlNetPipeline", rows=CONTROLNET))


def _painted(pipe: Pipeline, arguments: Mapping[str, Any]) -> tuple[slice, ...]:
    # Behind the tokens to paint are those of the picture, which the first of their positions tells apart.
    return (slice(int((arguments["img_ids"][..., 0] == 0).sum())),)


register_family(replace(FLUX, pipeline="FluxKontextPipeline", part=_painted))
