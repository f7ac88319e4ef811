"""Stable Diffusion 3: one call with [unconditional, conditional], flow.

Read in diffusers 0.42.1, ``pipelines/stable_diffusion_3/pipeline_stable_diffusion_3.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from .encoding import encode_prompt, lora_scale, tokens
from .record import Call, Family, Pipeline, Rows, register_family


def _uncounted(pipe: Pipeline) -> int:
    # The tokens of T5 stand behind those of the CLIP encoders, of which there are always as many.
    return int(pipe.tokenizer_max_length)


def _encode(pipe: Pipeline, call: Call, texts: Sequence[str], as_prompt: bool) -> Rows:
    embeddings, _, pooled, _ = encode_prompt(
        pipe,
        texts,
        prompt_2=None,
        prompt_3=None,
        clip_skip=call.get("clip_skip") if as_prompt else None,
        max_sequence_length=tokens(call, 256, as_prompt, more=_uncounted(pipe)),
        lora_scale=lora_scale(call, "joint_attention_kwargs"),
    )
    return {"encoder_hidden_states": embeddings, "pooled_projections": pooled}


SD3 = register_family(
    Family(
        pipeline="StableDiffusion3Pipeline",
        rows=(
            "timestep",
            "encoder_hidden_states",
            "pooled_projections",
            "joint_attention_kwargs.ip_adapter_image_embeds",
        ),
        owned={"guidance_scale": "cfg(scale)", "skip_guidance_layers": ""},
        halved=("ip_adapter_image_embeds",),
        encode=_encode,
        uncounted=_uncounted,
        embeds={"prompt_embeds": "encoder_hidden_states", "pooled_prompt_embeds": "pooled_projections"},
    )
)

_VARIANT = replace(SD3, owned={"guidance_scale": "cfg(scale)"})
register_family(replace(_VARIANT, pipeline="StableDiffusion3Img2ImgPipeline"))
register_family(
    replace(
        _VARIANT,
        pipeline="StableDiffusion3InpaintPipeline",
        part=lambda pipe, arguments: (slice(pipe.vae.config.latent_channels),),  # behind them, mask and picture
    )
)
for name in ("StableDiffusion3ControlNetPipeline", "StableDiffusion3ControlNetInpaintingPipeline"):
    register_family(replace(_VARIANT, pipeline=name, rows=(*_VARIANT.rows, "block_controlnet_hidden_states")))
