"""Stable Diffusion 3: one call with [unconditional, conditional], flow.

Read in diffusers 0.42.1, ``pipelines/stable_diffusion_3/pipeline_stable_diffusion_3.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from .record import FAMILIES, Call, Family, Pipeline, Rows, tokens


def _encode(pipe: Pipeline, call: Call, texts: Sequence[str], as_prompt: bool) -> Rows:
    # The tokens of T5 stand behind those of the CLIP encoders, of which there are always as many.
    embeddings, _, pooled, _ = pipe.encode_prompt(
        list(texts),
        None,
        None,
        device=pipe._execution_device,
        num_images_per_prompt=1,
        do_classifier_free_guidance=False,
        clip_skip=call.get("clip_skip") if as_prompt else None,
        max_sequence_length=tokens(call, 256, as_prompt, more=pipe.tokenizer_max_length),
        lora_scale=(call.get("joint_attention_kwargs") or {}).get("scale"),
    )
    return {"encoder_hidden_states": embeddings, "pooled_projections": pooled}


FAMILIES["StableDiffusion3Pipeline"] = Family(
    pipeline="StableDiffusion3Pipeline",
    denoiser="transformer",
    positional=(),
    sample="hidden_states",
    rows=(
        "timestep",
        "encoder_hidden_states",
        "pooled_projections",
        "joint_attention_kwargs.ip_adapter_image_embeds",
    ),
    guided={"guidance_scale": 2.0},
    unguided={"guidance_scale": 1.0},
    owned={"guidance_scale": "cfg(scale)", "skip_guidance_layers": ""},
    halved=("ip_adapter_image_embeds",),
    scratch=("_guidance_scale",),
    branches=lambda pipe, call: bool(pipe.do_classifier_free_guidance),
    encode=_encode,
    embeds={"prompt_embeds": "encoder_hidden_states", "pooled_prompt_embeds": "pooled_projections"},
    cannot=lambda pipe: "",
)

_VARIANT = replace(FAMILIES["StableDiffusion3Pipeline"], owned={"guidance_scale": "cfg(scale)"})
FAMILIES["StableDiffusion3Img2ImgPipeline"] = replace(_VARIANT, pipeline="StableDiffusion3Img2ImgPipeline")
FAMILIES["StableDiffusion3InpaintPipeline"] = replace(
    _VARIANT,
    pipeline="StableDiffusion3InpaintPipeline",
    part=lambda pipe, arguments: (slice(pipe.vae.config.latent_channels),),  # behind them, mask and picture
)
for _name in ("StableDiffusion3ControlNetPipeline", "StableDiffusion3ControlNetInpaintingPipeline"):
    FAMILIES[_name] = replace(_VARIANT, pipeline=_name, rows=(*_VARIANT.rows, "block_controlnet_hidden_states"))
