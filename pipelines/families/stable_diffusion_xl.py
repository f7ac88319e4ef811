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
from .record import FAMILIES, Call, Family, Pipeline, Rows
from .stable_diffusion import RESIDUALS, cannot, embedded, in_chunks, of_random_tokens

POOLED = "added_cond_kwargs.text_embeds"


def _encode(pipe: Pipeline, call: Call, texts: Sequence[str], as_prompt: bool) -> Rows:
    # The editing pipeline's encoder does not know this option, nor does its call.
    skip = {"clip_skip": call["clip_skip"]} if as_prompt and call.get("clip_skip") is not None else {}

    def encoded(texts: list[str]) -> tuple[Tensor, Tensor]:
        embeddings, _, pooled, _ = pipe.encode_prompt(
            texts,
            device=pipe._execution_device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=False,
            lora_scale=(call.get("cross_attention_kwargs") or {}).get("scale"),
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


_SDXL = Family(
    pipeline="StableDiffusionXLPipeline",
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
    guided={"guidance_scale": 2.0, "guidance_rescale": 0.0},
    unguided={"guidance_scale": 1.0, "guidance_rescale": 0.0},
    owned={"guidance_scale": "cfg(scale)", "guidance_rescale": "rescale(phi)"},
    keywords=("callback", "callback_steps"),
    halved=("ip_adapter_image_embeds",),
    scratch=("_guidance_scale", "_guidance_rescale"),
    branches=lambda pipe, call: bool(pipe.do_classifier_free_guidance),
    encode=_encode,
    embeds={"prompt_embeds": "encoder_hidden_states", "pooled_prompt_embeds": POOLED},
    zeros=lambda pipe: bool(pipe.config.force_zeros_for_empty_prompt),
    random={"tokens": _tokens, "gaussian": _gaussian},
    cannot=cannot,
    embedded=embedded,
)
for _name in ("StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline", "StableDiffusionXLInpaintPipeline"):
    FAMILIES[_name] = replace(_SDXL, pipeline=_name)
FAMILIES["StableDiffusionXLInstructPix2PixPipeline"] = replace(
    _SDXL,
    pipeline="StableDiffusionXLInstructPix2PixPipeline",
    halves=("positive", "image", "negative"),
    halved=(),
    guided={"guidance_scale": 2.0, "image_guidance_scale": 1.5, "guidance_rescale": 0.0},
    unguided={"guidance_scale": 1.0, "guidance_rescale": 0.0},
    owned={**_SDXL.owned, "image_guidance_scale": "cfg(scale, against='image')"},
    branches=lambda pipe, call: call["guidance_scale"] > 1 and call.get("image_guidance_scale", 1.5) >= 1,
)
FAMILIES["StableDiffusionXLControlNetInpaintPipeline"] = replace(
    _SDXL,
    pipeline="StableDiffusionXLControlNetInpaintPipeline",
    rows=(*_SDXL.rows, *RESIDUALS),
)
for _name in ("StableDiffusionXLControlNetPipeline", "StableDiffusionXLControlNetImg2ImgPipeline"):
    FAMILIES[_name] = replace(
        _SDXL,
        pipeline=_name,
        rows=(*_SDXL.rows, *RESIDUALS),
        guided={"guidance_scale": 2.0},
        unguided={"guidance_scale": 1.0},
        owned={"guidance_scale": "cfg(scale)"},
        scratch=("_guidance_scale",),
    )
