"""FluxPipeline: with a network that is not distilled, and with one that takes its scale as an input (dev)."""

from __future__ import annotations

import functools
from typing import Any

import torch

from . import Tiny
from .parts import flow, quiet, vae
from .text import WIDTH, clip_encoder, clip_tokenizer, louder, request, t5_encoder, t5_tokenizer


def _make(distilled: bool = False) -> Any:
    from diffusers import FluxPipeline, FluxTransformer2DModel

    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=1,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=distilled,
        axes_dims_rope=(4, 4, 8),
    )
    louder(transformer, ("add_v_proj", "to_out", "context_embedder", "text_embedder", "guidance_embedder"), 4)
    pipe = FluxPipeline(
        scheduler=flow(use_dynamic_shifting=True),
        vae=vae(shift_factor=0.0),
        text_encoder=clip_encoder(),
        tokenizer=clip_tokenizer(),
        text_encoder_2=t5_encoder(),
        tokenizer_2=t5_tokenizer(),
        transformer=transformer,
    )
    return quiet(pipe)


def _arguments(batch: int, negative: bool = False, **more: Any) -> dict[str, Any]:
    return request(batch, negative, {"height": 16, "width": 16, "max_sequence_length": 16}, more)


OPEN = Tiny(_make, _arguments, "true_cfg_scale")
DISTILLED = Tiny(functools.partial(_make, distilled=True), _arguments, "true_cfg_scale")
