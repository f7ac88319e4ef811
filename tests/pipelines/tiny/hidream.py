"""HiDreamImagePipeline."""

from __future__ import annotations

from typing import Any

import torch

from .parts import flow, quiet, vae
from .text import (
    WIDTH,
    WORDS,
    clip_encoder,
    clip_tokenizer,
    decoder_options,
    fast_tokenizer,
    louder,
    request,
    t5_encoder,
    t5_tokenizer,
)

SCALE, OFF, ON = "guidance_scale", 1.0, 5.0


def make() -> Any:
    from diffusers import HiDreamImagePipeline, HiDreamImageTransformer2DModel
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    transformer = HiDreamImageTransformer2DModel(
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=1,
        caption_channels=[WIDTH, WIDTH],
        text_emb_dim=2 * WIDTH,
        num_routed_experts=2,
        num_activated_experts=1,
        axes_dims_rope=(8, 4, 4),
        max_resolution=(8, 8),
        llama_layers=[0, 1],
    )
    louder(transformer, ("caption_projection", "to_v_t", "to_v", "to_out"), 4)
    # The pipeline asks for the attention maps as well, which the default implementation does not give.
    llama = LlamaForCausalLM(LlamaConfig(**decoder_options(WORDS), attn_implementation="eager"))
    pipe = HiDreamImagePipeline(
        scheduler=flow(shift=3.0),
        vae=vae(shift_factor=0.0),
        text_encoder=clip_encoder(projection=True),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip_encoder(projection=True),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=t5_encoder(),
        tokenizer_3=t5_tokenizer(),
        text_encoder_4=llama,
        tokenizer_4=fast_tokenizer(),
        transformer=transformer,
    )
    pipe.default_sample_size = 8  # it gives every picture the area of the default one
    return quiet(pipe)


def arguments(batch: int, negative: bool = False, **more: Any) -> dict[str, Any]:
    return request(batch, negative, {"max_sequence_length": 16}, more)
