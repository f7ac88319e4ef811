"""MochiPipeline."""

from __future__ import annotations

from typing import Any

import torch

from .parts import flow, quiet
from .text import louder, request, t5_encoder, t5_tokenizer

SCALE, OFF, ON = "guidance_scale", 1.0, 5.0


def make() -> Any:
    from diffusers import AutoencoderKLMochi, MochiPipeline, MochiTransformer3DModel

    torch.manual_seed(0)
    transformer = MochiTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        pooled_projection_dim=16,
        in_channels=4,
        text_embed_dim=16,
        time_embed_dim=8,
        max_sequence_length=16,
    )
    louder(transformer, ("caption_proj", "pooler.to_out"), 4)
    vae = AutoencoderKLMochi(
        latent_channels=4,
        encoder_block_out_channels=(32, 32, 32, 32),
        decoder_block_out_channels=(32, 32, 32, 32),
        layers_per_block=(1, 1, 1, 1, 1),
        latents_mean=None,
        latents_std=None,
    )
    scheduler = flow(invert_sigmas=True)
    pipe = MochiPipeline(scheduler, vae, t5_encoder(), t5_tokenizer(), transformer)
    return quiet(pipe)


def arguments(batch: int, negative: bool = False, **more: Any) -> dict[str, Any]:
    given = {"height": 32, "width": 32, "num_frames": 7, "max_sequence_length": 16, "num_inference_steps": 4}
    return request(batch, negative, given, more)
