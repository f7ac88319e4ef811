"""LTX-Video: from text, and from a picture."""

from __future__ import annotations

from typing import Any

import torch

from . import Tiny
from .parts import flow, pictures, quiet
from .text import louder, request, t5_encoder, t5_tokenizer

SCALE, OFF, ON = "guidance_scale", 1.0, 5.0


def make() -> Any:
    from diffusers import AutoencoderKLLTXVideo, LTXPipeline, LTXVideoTransformer3DModel

    torch.manual_seed(0)
    transformer = LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        num_layers=1,
        caption_channels=16,
    )
    louder(transformer, ("attn2.to_v", "attn2.to_out"), 6)
    vae = AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        patch_size=1,
    )
    scheduler = flow(
        use_dynamic_shifting=True,
        base_shift=0.95,
        max_shift=2.05,
        base_image_seq_len=1024,
        max_image_seq_len=4096,
        shift_terminal=0.1,
    )
    pipe = LTXPipeline(scheduler, vae, t5_encoder(), t5_tokenizer(), transformer)
    return quiet(pipe)


def arguments(batch: int, negative: bool = False, **more: Any) -> dict[str, Any]:
    given = {"height": 32, "width": 32, "num_frames": 5, "max_sequence_length": 16}
    return request(batch, negative, given, more)


def _make_image_to_video() -> Any:
    from diffusers import LTXImageToVideoPipeline

    return quiet(LTXImageToVideoPipeline(**make().components))


def _from_picture(batch: int, negative: bool = False, **more: Any) -> dict[str, Any]:
    return arguments(batch, negative, **{"image": pictures(batch, 32), "num_frames": 9, **more})


IMAGE_TO_VIDEO = Tiny(_make_image_to_video, _from_picture)
