"""HunyuanVideoPipeline: the guidance-distilled network, which takes its scale as an input."""

from __future__ import annotations

from typing import Any

import torch

from .parts import flow, quiet
from .text import WORDS, clip_encoder, clip_tokenizer, decoder_options, fast_tokenizer, louder, request

SCALE, OFF, ON = "true_cfg_scale", 1.0, 5.0

_TEMPLATE = "say: {}."


def make() -> Any:
    from diffusers import (
        AutoencoderKLHunyuanVideo,
        HunyuanVideoPipeline,
        HunyuanVideoTransformer3DModel,
    )
    from transformers import LlamaConfig, LlamaModel

    torch.manual_seed(0)
    transformer = HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        mlp_ratio=2.0,
        text_embed_dim=16,
        pooled_projection_dim=16,
        rope_axes_dim=(4, 4, 4),
    )
    louder(transformer, ("context_embedder.proj_out", "time_text_embed.text_embedder"), 2)
    text_encoder = LlamaModel(LlamaConfig(**decoder_options(WORDS, layers=3)))
    vae = AutoencoderKLHunyuanVideo(
        latent_channels=4, block_out_channels=(4, 4, 4, 4), layers_per_block=1, norm_num_groups=2
    )
    pipe = HunyuanVideoPipeline(
        text_encoder=text_encoder,
        tokenizer=fast_tokenizer(),
        transformer=transformer,
        vae=vae,
        scheduler=flow(shift=7.0),
        text_encoder_2=clip_encoder(positions=77),
        tokenizer_2=clip_tokenizer(),
    )
    return quiet(pipe)


def arguments(batch: int, negative: bool = False, **more: Any) -> dict[str, Any]:
    # "<s>" and the template's first characters are cut off; the full stop stays, since a mask of nothing gives NaN.
    template = {"template": _TEMPLATE, "crop_start": 1 + _TEMPLATE.index("{}")}
    given = {"height": 32, "width": 32, "num_frames": 5, "max_sequence_length": 16, "prompt_template": template}
    return request(batch, negative, given, more)
