"""Flux2KleinPipeline: it has no negative prompt."""

from __future__ import annotations

from typing import Any

import torch

from .parts import flow, quiet
from .text import WIDTH, decoder_options, louder, qwen_tokenizer, request

SCALE, OFF, ON = "guidance_scale", 1.0, 4.0


def make() -> Any:
    from diffusers import AutoencoderKLFlux2, Flux2KleinPipeline, Flux2Transformer2DModel
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    transformer = Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=1,
        joint_attention_dim=2 * WIDTH,
        timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
    )
    louder(transformer, ("context_embedder", "add_v_proj", "to_out", "to_add_out"), 4)
    tokenizer = qwen_tokenizer("user", "assistant", "<think>", "</think>")
    autoencoder = AutoencoderKLFlux2(
        sample_size=16,
        block_out_channels=(4, 4),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        norm_num_groups=2,
        latent_channels=4,
    )
    pipe = Flux2KleinPipeline(
        scheduler=flow(use_dynamic_shifting=True),
        vae=autoencoder,
        text_encoder=Qwen3ForCausalLM(Qwen3Config(**decoder_options(len(tokenizer)))),
        tokenizer=tokenizer,
        transformer=transformer,
    )
    return quiet(pipe)


def arguments(batch: int, negative: bool = False, **more: Any) -> dict[str, Any]:
    del negative  # it always guides against the empty prompt
    # The text encoder's layers whose outputs it is told to take: this one has two.
    given = {"height": 16, "width": 16, "max_sequence_length": 32, "text_encoder_out_layers": (1, 2)}
    return request(batch, False, given, more)
