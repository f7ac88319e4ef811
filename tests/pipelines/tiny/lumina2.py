"""Lumina2Pipeline."""

from __future__ import annotations

from typing import Any

import torch

from .parts import flow, quiet, vae
from .text import WIDTH, WORDS, decoder_options, fast_tokenizer, louder, request

SCALE, OFF, ON = "guidance_scale", 1.0, 5.0


def make() -> Any:
    from diffusers import Lumina2Pipeline, Lumina2Transformer2DModel
    from transformers import Gemma2Config, Gemma2Model

    torch.manual_seed(0)
    transformer = Lumina2Transformer2DModel(
        sample_size=8,
        in_channels=4,
        hidden_size=24,
        num_layers=1,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=8,
        axes_dim_rope=(4, 4, 4),
        axes_lens=(64, 8, 8),
        cap_feat_dim=WIDTH,
    )
    louder(transformer, ("caption_embedder", "to_v", "to_out"), 4)
    pipe = Lumina2Pipeline(
        transformer=transformer,
        scheduler=flow(use_dynamic_shifting=True),
        vae=vae(shift_factor=0.0),
        text_encoder=Gemma2Model(Gemma2Config(**decoder_options(WORDS))),
        tokenizer=fast_tokenizer(),
    )
    return quiet(pipe)


def arguments(batch: int, negative: bool = False, **more: Any) -> dict[str, Any]:
    # The default system prompt, which stands before the prompt alone, would leave no room for it.
    given = {"height": 64, "width": 64, "max_sequence_length": 32, "system_prompt": "draw"}
    return request(batch, negative, given, more)
