"""Stable Diffusion 1.x and 2.x: one call with [unconditional, conditional], epsilon or v.

Read in diffusers 0.42.1, ``pipelines/stable_diffusion/pipeline_stable_diffusion.py``, denoising loop of ``__call__``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from ...guidance.errors import UnsupportedPipelineError
from ...guidance.keyed import normal
from .encoding import encode_prompt, lora_scale, tokens
from .record import WITH_RESCALE, Call, Family, Pipeline, Rows, register_family


def _encode(pipe: Pipeline, call: Call, texts: Sequence[str], as_prompt: bool) -> Rows:
    def encoded(texts: list[str]) -> Tensor:
        embeddings, _ = encode_prompt(
            pipe,
            texts,
            lora_scale=lora_scale(call, "cross_attention_kwargs"),
            clip_skip=call.get("clip_skip") if as_prompt else None,
        )
        return cast(Tensor, embeddings)

    embeddings = encoded(list(texts))
    return {"encoder_hidden_states": in_chunks(embeddings, call, as_prompt, lambda: encoded([""]))}


def in_chunks(embeddings: Tensor, call: Call, as_prompt: bool, empty: Callable[[], Tensor]) -> Tensor:
    """`embeddings` of texts with as many chunks as the call's own, which were given as embeddings of a long prompt.

    A long prompt is encoded in chunks of the encoder's length. As those who do so do it, a shorter text is followed by
    chunks of the empty text, which `empty` encodes.
    """
    length = embeddings.shape[1]
    wanted = tokens(call, length, as_prompt)
    if wanted % length or wanted == length:
        return embeddings
    return torch.cat([embeddings, empty().repeat(len(embeddings), wanted // length - 1, 1)], 1)


def embedded(pipe: Pipeline) -> str:
    """The argument with the scale that a distilled UNet takes as an input; "" for any other UNet."""
    return "guidance_scale" if pipe.unet.config.time_cond_proj_dim is not None else ""


def cannot(pipe: Pipeline) -> str:
    """Why the pipeline has no unconditional branch, or ""."""
    if embedded(pipe):
        return "its network takes the guidance scale as an input (guidance-distilled) and has no unconditional branch"
    return ""


def _tokens(pipe: Pipeline, rows: Rows, generators: Sequence[torch.Generator]) -> Rows:
    prompt = rows["encoder_hidden_states"]
    outputs = of_random_tokens(pipe.text_encoder, prompt, generators, attention_mask=None)
    return {"encoder_hidden_states": torch.cat([output[0] for output in outputs], 1).to(prompt)}


def of_random_tokens(
    encoder: Any, prompt: Tensor, generators: Sequence[torch.Generator], **options: Any
) -> list[Sequence[Tensor]]:
    """What a text encoder answers to random tokens, as many as `prompt` has: for each chunk that it can take at once.

    Raises:
        UnsupportedPipelineError: there is no text encoder.
    """
    if encoder is None:
        raise UnsupportedPipelineError(
            "random tokens need a text encoder, and this pipeline has none; use icg(scale, source='gaussian')"
        )
    size, most = (prompt.shape[1],), encoder.config.max_position_embeddings
    ids = torch.stack([torch.randint(encoder.config.vocab_size, size, generator=one) for one in generators])
    chunks = torch.split(ids.to(prompt.device, non_blocking=True), most, 1)
    return [encoder(chunk, **options) for chunk in chunks]


def _gaussian(pipe: Pipeline, rows: Rows, generators: Sequence[torch.Generator]) -> Rows:
    prompt = rows["encoder_hidden_states"]
    drawn = normal(generators, prompt.shape[1:], prompt.device)
    return {"encoder_hidden_states": (drawn * prompt.float().std(dim=(1, 2), keepdim=True)).to(prompt.dtype)}


PLAIN = register_family(
    Family(
        pipeline="StableDiffusionImg2ImgPipeline",
        denoiser="unet",
        positional=("sample", "timestep"),
        sample="sample",
        rows=("encoder_hidden_states", "timestep_cond", "added_cond_kwargs.image_embeds"),
        keywords=("callback", "callback_steps"),
        halved=("ip_adapter_image_embeds",),
        encode=_encode,
        embeds={"prompt_embeds": "encoder_hidden_states"},
        random={"tokens": _tokens, "gaussian": _gaussian},
        cannot=cannot,
        embedded=embedded,
    )
)

register_family(replace(PLAIN, pipeline="StableDiffusionInpaintPipeline"))
register_family(replace(PLAIN, pipeline="StableDiffusionPipeline", **WITH_RESCALE))
RESIDUALS = ("down_block_additional_residuals", "mid_block_additional_residual")
for name in (
    "StableDiffusionControlNetPipeline",
    "StableDiffusionControlNetImg2ImgPipeline",
    "StableDiffusionControlNetInpaintPipeline",
):
    register_family(replace(PLAIN, pipeline=name, rows=(*PLAIN.rows, *RESIDUALS)))


def _encode_to_edit(pipe: Pipeline, call: Call, texts: Sequence[str], as_prompt: bool) -> Rows:
    def encoded(texts: list[str]) -> Tensor:
        return cast(Tensor, pipe._encode_prompt(texts, pipe._execution_device, 1, False))

    embeddings = encoded(list(texts))
    return {"encoder_hidden_states": in_chunks(embeddings, call, as_prompt, lambda: encoded([""]))}


# Its own guidance is u + s_t (c - i) + s_i (i - u), where i has the picture and no text and u neither: as a stack
# cfg(s_i, against='negative') | cfg(1 + s_t - s_i, against='image').
register_family(
    replace(
        PLAIN,
        pipeline="StableDiffusionInstructPix2PixPipeline",
        halves=("positive", "image", "negative"),
        guided={"guidance_scale": 2.0, "image_guidance_scale": 1.5},
        owned={"guidance_scale": "cfg(scale)", "image_guidance_scale": "cfg(scale, against='image')"},
        scratch=("_guidance_scale", "_image_guidance_scale"),
        encode=_encode_to_edit,
    )
)
