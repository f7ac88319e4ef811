"""Stable Diffusion 1.x and 2.x: one call with [unconditional, conditional], epsilon or v.

Read in diffusers 0.42.1, ``pipelines/stable_diffusion/pipeline_stable_diffusion.py``, denoising loop of ``__call__``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .family import FAMILIES, Call, Family, Pipeline, Rows


def _encode(pipe: Pipeline, call: Call, texts: Sequence[str]) -> Rows:
    embeddings, _ = pipe.encode_prompt(
        list(texts),
        pipe._execution_device,
        num_images_per_prompt=1,
        do_classifier_free_guidance=False,
        lora_scale=(call.get("cross_attention_kwargs") or {}).get("scale"),
        clip_skip=call.get("clip_skip"),
    )
    return {"encoder_hidden_states": embeddings}


def _embedded(pipe: Pipeline) -> str:
    return "guidance_scale" if pipe.unet.config.time_cond_proj_dim is not None else ""


def _cannot(pipe: Pipeline) -> str:
    if _embedded(pipe):
        return "its network takes the guidance scale as an input (guidance-distilled) and has no unconditional branch"
    return ""


def _tokens(pipe: Pipeline, rows: Rows, generators: Sequence[torch.Generator]) -> Rows:
    prompt = rows["encoder_hidden_states"]
    vocabulary, length = pipe.text_encoder.config.vocab_size, prompt.shape[1]
    ids = torch.stack([torch.randint(vocabulary, (length,), generator=one) for one in generators])
    embeddings = pipe.text_encoder(ids.to(prompt.device), attention_mask=None)[0]
    return {"encoder_hidden_states": embeddings.to(prompt)}


def _gaussian(pipe: Pipeline, rows: Rows, generators: Sequence[torch.Generator]) -> Rows:
    prompt = rows["encoder_hidden_states"]
    normal = torch.stack([torch.randn(prompt.shape[1:], generator=one) for one in generators])
    return {"encoder_hidden_states": normal.to(prompt) * prompt.float().std(dim=(1, 2), keepdim=True).to(prompt.dtype)}


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
    cannot=_cannot,
    embedded=_embedded,
)
