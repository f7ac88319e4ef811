"""AuraFlowPipeline."""

from __future__ import annotations

from typing import Any

import torch

from .parts import flow, quiet, vae
from .text import WIDTH, louder, request, t5_encoder, t5_tokenizer

SCALE, OFF, ON = "guidance_scale", 1.0, 5.0


def make() -> Any:
    from diffusers import AuraFlowPipeline, AuraFlowTransformer2DModel

    torch.manual_seed(0)
    transformer = AuraFlowTransformer2DModel(
        sample_size=8,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        caption_projection_dim=16,
        pos_embed_max_size=16,
    )
    louder(transformer, ("context_embedder", "add_v_proj", "attn.to_", "norm1", "time_step_proj"), 4)
    pipe = AuraFlowPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=t5_encoder(multilingual=True),
        vae=vae(),
        transformer=transformer,
        scheduler=flow(shift=1.73),
    )
    return quiet(pipe)


def arguments(batch: int, negative: bool = False, **more: Any) -> dict[str, Any]:
    return request(batch, negative, {"height": 16, "width": 16, "max_sequence_length": 16}, more)
