"""Kandinsky3Pipeline, whose scale s means (s + 1) c - s u."""

from __future__ import annotations

from typing import Any

import torch

from .parts import quiet
from .text import louder, request, t5_encoder, t5_tokenizer

SCALE, OFF, ON = "guidance_scale", 1.0, 4.0


def make() -> Any:
    from diffusers import DDPMScheduler, Kandinsky3Pipeline, Kandinsky3UNet, VQModel

    torch.manual_seed(0)
    unet = Kandinsky3UNet(
        time_embedding_dim=8,
        groups=2,
        attention_head_dim=4,
        layers_per_block=2,
        block_out_channels=(8, 8),
        cross_attention_dim=16,
        encoder_hid_dim=16,
    )
    louder(unet, ("to_v", "to_out"), 3)
    movq = VQModel(
        block_out_channels=(4, 4, 4, 4),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=2,
        vq_embed_dim=4,
        num_vq_embeddings=8,
    )
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2", thresholding=True, sample_max_value=2.0)
    return quiet(Kandinsky3Pipeline(t5_tokenizer(), t5_encoder(), unet, scheduler, movq))


def arguments(batch: int, negative: bool = False, **more: Any) -> dict[str, Any]:
    return request(batch, negative, {"height": 64, "width": 64}, more)
