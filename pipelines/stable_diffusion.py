"""Stable Diffusion 1.x and 2.x: one call with [unconditional, conditional], epsilon or v.

Read in diffusers 0.42.1, ``pipelines/stable_diffusion/pipeline_stable_diffusion.py``, denoising loop of ``__call__``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from ..guidance.errors import UnsupportedPipelineError
from ..guidance.keyed import normal
from .family import FAMILIES, Call, Family, Pipeline, Rows


def _encode(pipe: Pipeline, call: Call, texts: Sequence[str], as_prompt: bool) -> Rows:
    embeddings, _ = pipe.encode_prompt(
        list(texts),
        pipe._execution_device,
        num_images_per_prompt=1,
        do_classifier_free_guidance=False,
        lora_scale=(call.get("cross_attention_kwargs") or {}).get("scale"),
        clip_skip=call.get("clip_skip") if as_prompt else None,
    )
    return {"encoder_hidden_states": embeddings}


def embedded(pipe: Pipeline) -> str:
    """The argument with the scale that a distilled network takes as an input."""
    return "guidance_scale" if pipe.unet.config.time_cond_proj_dim is not None else ""


def cannot(pipe: Pipeline) -> str:
    """Why it has no unconditional branch."""
    if embedded(pipe):
        return "its network takes the guidance scale as an input (guidance-distilled) and has no unconditional branch"
    return ""


def _tokens(pipe: Pipeline, rows: Rows, generators: Sequence[torch.Generator]) -> Rows:
    if pipe.text_encoder is None:
        raise UnsupportedPipelineError(
            "random tokens need a text encoder, and this pipeline was loaded without; use icg(scale, source='gaussian')"
        )
    prompt = rows["encoder_hidden_states"]
    vocabulary, length = pipe.text_encoder.config.vocab_size, prompt.shape[1]
    ids = torch.stack([torch.randint(vocabulary, (length,), generator=one) for one in generators])
    embeddings = pipe.text_encoder(ids.to(prompt.device, non_blocking=True), attention_mask=None)[0]
    return {"encoder_hidden_states": embeddings.to(prompt)}


def _gaussian(pipe: Pipeline, rows: Rows, generators: Sequence[torch.Generator]) -> Rows:
    prompt = rows["encoder_hidden_states"]
    drawn = normal(generators, prompt.shape[1:], prompt.device)
    return {"encoder_hidden_states": (drawn * prompt.float().std(dim=(1, 2), keepdim=True)).to(prompt.dtype)}


FAMILIES["StableDiffusionPipeline"] = Family(
    pipeline="StableDiffusionPipeline",
    denoiser="unet",
    positional=("sample", "timestep"),
    sample="sample",
    rows=("encoder_hidden_states", "timestep_cond", "added_cond_kwargs.image_embeds"),
    guided={"guidance_scale": 2.0, "guidance_rescale": 0.0},
    unguided={"guidance_scale": 1.0, "guidance_rescale": 0.0},
    owned={"guidance_scale": "cfg(scale)", "guidance_rescale": "rescale(phi)"},
    keywords=("callback", "callback_steps"),
    scratch=("_guidance_scale", "_guidance_rescale"),
    branches=lambda pipe, call: bool(pipe.do_classifier_free_guidance),
    encode=_encode,
    random={"tokens": _tokens, "gaussian": _gaussian},
    cannot=cannot,
    embedded=embedded,
)

_VARIANT = replace(
    FAMILIES["StableDiffusionPipeline"],
    guided={"guidance_scale": 2.0},
    unguided={"guidance_scale": 1.0},
    owned={"guidance_scale": "cfg(scale)"},
    scratch=("_guidance_scale",),
)
for _name in ("StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline"):
    FAMILIES[_name] = replace(_VARIANT, pipeline=_name)
RESIDUALS = ("down_block_additional_residuals", "mid_block_additional_residual")
for _name in (
    "StableDiffusionControlNetPipeline",
    "StableDiffusionControlNetImg2ImgPipeline",
    "StableDiffusionControlNetInpaintPipeline",
):
    FAMILIES[_name] = replace(_VARIANT, pipeline=_name, rows=(*_VARIANT.rows, *RESIDUALS))


def _encode_to_edit(pipe: Pipeline, call: Call, texts: Sequence[str], as_prompt: bool) -> Rows:
    return {"encoder_hidden_states": pipe._encode_prompt(list(texts), pipe._execution_device, 1, False)}


# Its own guidance is u + s_t (c - i) + s_i (i - u), where i has the picture and no text and u neither: as a stack
# cfg(s_i, against='negative') | cfg(1 + s_t - s_i, against='image').
FAMILIES["StableDiffusionInstructPix2PixPipeline"] = replace(
    _VARIANT,
    pipeline="StableDiffusionInstructPix2PixPipeline",
    halves=("positive", "image", "negative"),
    guided={"guidance_scale": 2.0, "image_guidance_scale": 1.5},
    unguided={"guidance_scale": 1.0},
    owned={"guidance_scale": "cfg(scale)", "image_guidance_scale": "cfg(scale, against='image')"},
    scratch=("_guidance_scale", "_image_guidance_scale"),
    encode=_encode_to_edit,
)
