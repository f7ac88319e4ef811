"""StableDiffusion3Pipeline."""

from __future__ import annotations

from typing import Any

import torch

from .parts import flow, quiet, vae
from .text import WIDTH, clip_encoder, clip_tokenizer, louder, request, t5_encoder, t5_tokenizer

SCALE, OFF, ON = "guidance_scale", 1.0, 5.0


def make() -> Any:
    from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline

    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=2 * WIDTH,
        caption_projection_dim=16,
        pooled_projection_dim=2 * WIDTH,
        pos_embed_max_size=8,
    )
    louder(transformer, ("add_v_proj", "to_out", "context_embedder", "text_embedder"), 4)
    pipe = StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=flow(shift=3.0),
        vae=vae(shift_factor=0.0),
        text_encoder=clip_encoder(projection=True),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip_encoder(projection=True),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=t5_encoder(width=2 * WIDTH),
        tokenizer_3=t5_tokenizer(),
    )
    return quiet(pipe)


def arguments(batch: int, negative: bool = False, **more: Any) -> dict[str, Any]:
    return request(batch, negative, {"max_sequence_length": 16}, more)
