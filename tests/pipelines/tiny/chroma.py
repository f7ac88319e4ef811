"""Chroma: text to image, and from a picture."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from . import Tiny
from .parts import flow, pictures, quiet, vae
from .text import WIDTH, louder, request, t5_encoder, t5_tokenizer

SCALE, OFF, ON = "guidance_scale", 1.0, 5.0


def make() -> Any:
    from diffusers import ChromaPipeline, ChromaTransformer2DModel

    torch.manual_seed(0)
    with warnings.catch_warnings():
        # diffusers 0.42.1 itself still uses a name that it deprecates.
        warnings.filterwarnings("ignore", ".*FluxPosEmbed", FutureWarning)
        transformer = ChromaTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=1,
            joint_attention_dim=WIDTH,
            axes_dims_rope=(4, 4, 8),
            approximator_num_channels=16,
            approximator_hidden_dim=16,
            approximator_layers=1,
        )
    louder(transformer, ("add_v_proj", "to_out", "context_embedder", "distilled_guidance_layer.out_proj"), 4)
    pipe = ChromaPipeline(
        scheduler=flow(use_dynamic_shifting=True),
        vae=vae(shift_factor=0.0),
        text_encoder=t5_encoder(),
        tokenizer=t5_tokenizer(),
        transformer=transformer,
    )
    return quiet(pipe)


def arguments(batch: int, negative: bool = False, **more: Any) -> dict[str, Any]:
    return request(batch, negative, {"height": 16, "width": 16, "max_sequence_length": 16}, more)


def _make_image_to_image() -> Any:
    from diffusers import ChromaImg2ImgPipeline

    return quiet(ChromaImg2ImgPipeline(**make().components))


def _from_picture(batch: int, negative: bool = False, **more: Any) -> dict[str, Any]:
    given = {"image": pictures(batch), "strength": 0.7, "num_inference_steps": 3}
    return arguments(batch, negative, **{**given, **more})


IMAGE_TO_IMAGE = Tiny(_make_image_to_image, _from_picture)
