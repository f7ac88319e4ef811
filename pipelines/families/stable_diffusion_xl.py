"""Stable Diffusion XL: one call with [unconditional, conditional]; the pooled text and the sizes go in beside the text.

Read in diffusers 0.42.1, ``pipelines/stable_diffusion_xl/`` and ``pipelines/controlnet/pipeline_controlnet_sd_xl.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...guidance.keyed import normal
from .encoding import encode_prompt, lora_scale
from .record import WITH_RESCALE, Call, Family, Pipeline, Rows, register_family
from .stable_diffusion import RESIDUALS, cannot, embedded, in_chunks, of_random_tokens

POOLED = "added_cond_kwargs.text_embeds"


def _encode(pipe: Pipeline, call: Call, texts: Sequence[str], as_prompt: bool) -> Rows:
    # The editing pipeline's encoder does not know this option, nor does its call.
    skip = {"clip_skip": call["clip_skip"]} if as_prompt and call.get("clip_skip") is not None else {}

    def encoded(texts: list[str]) -> tuple[Tensor, Tensor]:
        embeddings, _, pooled, _ = encode_prompt(
            pipe,
            texts,
            lora_scale=lora_scale(call, "cross_attention_kwargs"),
            **skip,
        )
        return embeddings, pooled

    embeddings, pooled = encoded(list(texts))
    embeddings = in_chunks(embeddings, call, as_prompt, lambda: encoded([""])[0])
    return {"encoder_hidden_states": embeddings, POOLED: pooled}


def _tokens(pipe: Pipeline, rows: Rows, generators: Sequence[torch.Generator]) -> Rows:
    prompt = rows["encoder_hidden_states"]
    parts, pooled = [], prompt
    for encoder in list(filter(None, (pipe.text_encoder, pipe.text_encoder_2))) or [None]:
        outputs: Any = of_random_tokens(encoder, prompt, generators, output_hidden_states=True)
        parts.append(torch.cat([output.hidden_states[-2] for output in outputs], 1))
        pooled = outputs[0][0]
    return {"encoder_hidden_states": torch.cat(parts, -1).to(prompt), POOLED: pooled.to(prompt)}


def _gaussian(pipe: Pipeline, rows: Rows, generators: Sequence[torch.Generator]) -> Rows:
    drawn = {}
    for name in ("encoder_hidden_states", POOLED):
        value = rows[name]
        std = value.float().flatten(1).std(dim=1).reshape(-1, *[1] * (value.ndim - 1))
        drawn[name] = (normal(generators, value.shape[1:], value.device) * std).to(value.dtype)
    return drawn


PLAIN = Family(
    pipeline="StableDiffusionXLControlNetPipeline",
    denoiser="unet",
    positional=("sample", "timestep"),
    sample="sample",
    rows=(
        "encoder_hidden_states",
        "timestep_cond",
        POOLED,
        "added_cond_kwargs.time_ids",
        "added_cond_kwargs.image_embeds",
    ),
    cannot=cannot,
    embedded=embedded,
    encode=_encode,
    embeds={"prompt_embeds": "encoder_hidden_states", "pooled_prompt_embeds": POOLED},
    zeros=lambda pipe: bool(pipe.config.force_zeros_for_empty_prompt),
    random={"tokens": _tokens, "gaussian": _gaussian},
    halved=("ip_adapter_image_embeds",),
    keywords=("callback", "callback_steps"),
)
XL = register_family(replace(PLAIN, pipeline="StableDiffusionXLPipeline", **WITH_RESCALE))
for name in ("StableDiffusionXLImg2ImgPipeline", "StableDiffusionXLInpaintPipeline"):
    register_family(replace(XL, pipeline=name))
CONTROLNET = (*PLAIN.rows, *RESIDUALS)
register_family(replace(XL, pipeline="StableDiffusionXLControlNetInpaintPipeline", rows=CONTROLNET))
for name in ("StableDiffusionXLControlNetPipeline", "StableDiffusionXLControlNetImg2ImgPipeline"):
    register_family(replace(PLAIN, pipeline=name, rows=CONTROLNET))
register_family(
    replace(
        XL,
        pipeline="StableDiffusionXLInstructPix2PixPipeline",
        halves=("positive", "image", "negative"),
        halved=(),
        guided={**XL.guided, "image_guidance_scale": 1.5},
        owned={**XL.owned, "image_guidance_scale": "cfg(scale, against='image')"},
        branches=lambda pipe, call: call["guidance_scale"] > 1 and call.get("image_guidance_scale", 1.5) >= 1,
    )
)
