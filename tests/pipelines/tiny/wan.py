"""Wan: one transformer (2.1), two that share the schedule (2.2), a timestep for each token (2.2, 5B); from pictures."""

from __future__ import annotations

import functools
from typing import Any

import torch

from . import Tiny
from .parts import pictures, quiet
from .text import louder, request, t5_encoder, t5_tokenizer


def _transformer(**options: Any) -> Any:
    from diffusers import WanTransformer3DModel

    transformer = WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        **{"in_channels": 4, **options},
        out_channels=4,
        text_dim=16,
        freq_dim=16,
        ffn_dim=16,
        num_layers=1,
        rope_max_seq_len=16,
    )
    louder(transformer, ("attn2.to_v", "attn2.to_out"), 6)
    return transformer


def _make(cls: str = "WanPipeline", both: bool = False, seen: int = 4, **options: Any) -> Any:
    import diffusers
    from diffusers import AutoencoderKLWan, UniPCMultistepScheduler

    torch.manual_seed(0)
    vae = AutoencoderKLWan(
        base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, latents_mean=[0.0] * 4, latents_std=[1.0] * 4
    )
    given = (
        {} if cls == "WanVideoToVideoPipeline" else {"transformer_2": _transformer(in_channels=seen) if both else None}
    )
    pipe = getattr(diffusers, cls)(
        tokenizer=t5_tokenizer(),
        text_encoder=t5_encoder(multilingual=True),
        vae=vae,
        scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
        transformer=_transformer(in_channels=seen),
        **given,
        **options,
    )
    return quiet(pipe)


def _arguments(batch: int, negative: bool = False, **more: Any) -> dict[str, Any]:
    given = {"height": 64, "width": 64, "num_frames": 5, "max_sequence_length": 16, "num_inference_steps": 3}
    return request(batch, negative, given, more)


ONE = Tiny(_make, _arguments)
TWO = Tiny(functools.partial(_make, both=True, boundary_ratio=0.8), _arguments)
TOKENS = Tiny(functools.partial(_make, expand_timesteps=True), _arguments)


def _from_picture(batch: int, negative: bool = False, **more: Any) -> dict[str, Any]:
    return _arguments(batch, negative, **{"image": pictures(1, 64), **more})  # one for all


def _from_video(batch: int, negative: bool = False, **more: Any) -> dict[str, Any]:
    video = pictures(5 * batch, 64).reshape(batch, 5, 3, 64, 64)
    given = {"video": [list(frames) for frames in video], "strength": 0.7}
    found = _arguments(batch, negative, **{**given, **more})
    del found["num_frames"]
    return found


IMAGE_TO_VIDEO = Tiny(functools.partial(_make, "WanImageToVideoPipeline", seen=12), _from_picture)
IMAGE_TO_VIDEO_TOKENS = Tiny(functools.partial(_make, "WanImageToVideoPipeline", expand_timesteps=True), _from_picture)
VIDEO_TO_VIDEO = Tiny(functools.partial(_make, "WanVideoToVideoPipeline"), _from_video)
