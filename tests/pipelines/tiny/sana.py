"""SanaPipeline."""

from __future__ import annotations

from typing import Any

import torch

from .parts import quiet
from .text import WORDS, decoder_options, fast_tokenizer, louder, request

SCALE, OFF, ON = "guidance_scale", 1.0, 5.0


def make() -> Any:
    from diffusers import AutoencoderDC, DPMSolverMultistepScheduler, SanaPipeline, SanaTransformer2DModel
    from transformers import Gemma2Config, Gemma2Model

    torch.manual_seed(0)
    transformer = SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=8,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=16,
        sample_size=32,
    )
    louder(transformer, ("attn2.to_v", "attn2.to_out"), 6)
    vae = AutoencoderDC(
        latent_channels=4,
        attention_head_dim=4,
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), ()),
        decoder_qkv_multiscales=((), ()),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
    )
    scheduler = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    text_encoder = Gemma2Model(Gemma2Config(**decoder_options(WORDS), query_pre_attn_scalar=8))
    return quiet(SanaPipeline(fast_tokenizer(), text_encoder, vae, transformer, scheduler))


def arguments(batch: int, negative: bool = False, **more: Any) -> dict[str, Any]:
    given = {"height": 32, "width": 32, "use_resolution_binning": False, "max_sequence_length": 16}
    # Put before the prompt, not before the negative one.
    return request(batch, negative, given | {"complex_human_instruction": ["Improve this:"]}, more)
