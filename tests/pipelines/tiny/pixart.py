"""PixArtAlphaPipeline, which is told the resolution, and PixArtSigmaPipeline; both with learned variances."""

from __future__ import annotations

from typing import Any

import torch

from . import Tiny
from .parts import quiet, vae
from .text import louder, request, t5_encoder, t5_tokenizer


def _parts(sample_size: int) -> dict[str, Any]:
    from diffusers import DPMSolverMultistepScheduler, PixArtTransformer2DModel

    torch.manual_seed(0)
    transformer = PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=8,
        num_layers=1,
        norm_num_groups=1,
        cross_attention_dim=24,
        sample_size=sample_size,
        caption_channels=16,
    )
    louder(transformer, ("attn2.to_v", "attn2.to_out"), 6)
    return {
        "transformer": transformer,
        "text_encoder": t5_encoder(),
        "tokenizer": t5_tokenizer(),
        "vae": vae(),
        "scheduler": DPMSolverMultistepScheduler(beta_schedule="linear"),
    }


def _make_alpha() -> Any:
    from diffusers import PixArtAlphaPipeline

    # The pipeline hands the resolution over at this size only, whatever the size of the picture.
    return quiet(PixArtAlphaPipeline(**_parts(sample_size=128)))


def _make_sigma() -> Any:
    from diffusers import PixArtSigmaPipeline

    return quiet(PixArtSigmaPipeline(**_parts(sample_size=8)))


def _arguments(batch: int, negative: bool = False, **more: Any) -> dict[str, Any]:
    given: dict[str, Any] = {"height": 16, "width": 16, "use_resolution_binning": False, "clean_caption": False}
    return request(batch, negative, given | {"max_sequence_length": 16}, more)


ALPHA = Tiny(_make_alpha, _arguments)
SIGMA = Tiny(_make_sigma, _arguments)
