"""Z-Image: text to image, and from a picture."""

from __future__ import annotations

from typing import Any

import torch

from . import Tiny
from .parts import flow, pictures, quiet, vae
from .text import WIDTH, decoder_options, louder, qwen_tokenizer, request

SCALE, OFF, ON = "guidance_scale", 0.0, 4.0


def make() -> Any:
    from diffusers import ZImagePipeline, ZImageTransformer2DModel
    from transformers import Qwen3Config, Qwen3Model

    torch.manual_seed(0)
    transformer = ZImageTransformer2DModel(
        in_channels=4,
        dim=24,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=WIDTH,
        axes_dims=[4, 4, 4],
        axes_lens=[128, 8, 8],
    )
    louder(transformer, ("cap_embedder", "to_v", "to_out"), 4)
    tokenizer = qwen_tokenizer("user", "assistant", "<think>", "</think>")
    pipe = ZImagePipeline(
        scheduler=flow(use_dynamic_shifting=True),
        vae=vae(shift_factor=0.0),
        text_encoder=Qwen3Model(Qwen3Config(**decoder_options(len(tokenizer)))),
        tokenizer=tokenizer,
        transformer=transformer,
    )
    return quiet(pipe)


def arguments(batch: int, negative: bool = False, **more: Any) -> dict[str, Any]:
    return request(batch, negative, {"height": 16, "width": 16, "max_sequence_length": 32}, more)


def _make_image_to_image() -> Any:
    from diffusers import ZImageImg2ImgPipeline

    return quiet(ZImageImg2ImgPipeline(**make().components))


def _from_picture(batch: int, negative: bool = False, **more: Any) -> dict[str, Any]:
    given = {"image": pictures(batch), "strength": 0.7, "num_inference_steps": 3}
    return arguments(batch, negative, **{**given, **more})


IMAGE_TO_IMAGE = Tiny(_make_image_to_image, _from_picture, SCALE, OFF, ON)
