"""CogView4Pipeline."""

from __future__ import annotations

from typing import Any

import torch

from .parts import flow, quiet
from .text import WORDS, decoder_options, fast_tokenizer, louder, request

SCALE, OFF, ON = "guidance_scale", 1.0, 5.0


def make() -> Any:
    from diffusers import AutoencoderKL, CogView4Pipeline, CogView4Transformer2DModel
    from transformers import GlmConfig, GlmModel

    torch.manual_seed(0)
    transformer = CogView4Transformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        text_embed_dim=16,
        time_embed_dim=8,
        condition_dim=4,
        pos_embed_max_size=8,
        sample_size=8,
        rope_axes_dim=(8, 8),
    )
    louder(transformer, ("patch_embed.text_proj", "attn1.to_v", "attn1.to_out"), 8)
    text_encoder = GlmModel(GlmConfig(**decoder_options(WORDS)))
    vae = AutoencoderKL(
        block_out_channels=(4, 4, 4, 4),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=2,
        latent_channels=4,
    )
    scheduler = flow(
        use_dynamic_shifting=True, base_shift=0.25, max_shift=0.75, base_image_seq_len=256, time_shift_type="linear"
    )
    pipe = CogView4Pipeline(fast_tokenizer(padding_side="left"), text_encoder, vae, transformer, scheduler)
    return quiet(pipe)


def arguments(batch: int, negative: bool = False, **more: Any) -> dict[str, Any]:
    return request(batch, negative, {"height": 64, "width": 64}, more)
