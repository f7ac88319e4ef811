"""WanPipeline: one transformer (2.1), two that share the schedule (2.2), and a timestep for each token (2.2, 5B)."""

from __future__ import annotations

import functools
from typing import Any

import torch

from . import Tiny
from .parts import quiet
from .text import louder, request, t5_encoder, t5_tokenizer


def _transformer() -> Any:
    from diffusers import WanTransformer3DModel

    transformer = WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=16,
        ffn_dim=16,
        num_layers=1,
        rope_max_seq_len=16,
    )
    louder(transformer, ("attn2.to_v", "attn2.to_out"), 6)
    return transformer


def _make(both: bool = False, **options: Any) -> Any:
    from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline

    torch.manual_seed(0)
    vae = AutoencoderKLWan(
        base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, latents_mean=[0.0] * 4, latents_std=[1.0] * 4
    )
    pipe = WanPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=t5_encoder(multilingual=True),
        vae=vae,
        scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
        transformer=_transformer(),
        transformer_2=_transformer() if both else None,
        **options,
    )
    return quiet(pipe)


def _arguments(batch: int, negative: bool = False, **more: Any) -> dict[str, Any]:
    given = {"height": 64, "width": 64, "num_frames": 5, "max_sequence_length": 16, "num_inference_steps": 3}
    return request(batch, negative, given, more)


ONE = Tiny(_make, _arguments)
TWO = Tiny(functools.partial(_make, both=True, boundary_ratio=0.8), _arguments)
TOKENS = Tiny(functools.partial(_make, expand_timesteps=True), _arguments)
