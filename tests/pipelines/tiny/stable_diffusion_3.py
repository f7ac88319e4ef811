"""Stable Diffusion 3: text to image, from a picture, inpainting with both kinds of transformer, ControlNet."""

from __future__ import annotations

import functools
from typing import Any

import torch

from . import Tiny
from .parts import flow, masks, pictures, quiet, randomized, vae
from .text import WIDTH, clip_encoder, clip_tokenizer, louder, request, t5_encoder, t5_tokenizer


def _parts(channels: int = 4, seen: int = 4) -> dict[str, Any]:
    """With latents of so many channels, and a transformer that is handed `seen` of them."""
    from diffusers import SD3Transformer2DModel

    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=seen,
        out_channels=channels,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=2 * WIDTH,
        caption_projection_dim=16,
        pooled_projection_dim=2 * WIDTH,
        pos_embed_max_size=8,
    )
    louder(transformer, ("add_v_proj", "to_out", "context_embedder", "text_embedder"), 4)
    return {
        "transformer": transformer,
        "scheduler": flow(shift=3.0),
        "vae": vae(channels, shift_factor=0.0),
        "text_encoder": clip_encoder(projection=True),
        "tokenizer": clip_tokenizer(),
        "text_encoder_2": clip_encoder(projection=True),
        "tokenizer_2": clip_tokenizer(),
        "text_encoder_3": t5_encoder(width=2 * WIDTH),
        "tokenizer_3": t5_tokenizer(),
    }


def _make(cls: str = "StableDiffusion3Pipeline", **options: Any) -> Any:
    import diffusers

    return quiet(getattr(diffusers, cls)(**_parts(**options)))


def _make_controlnet(cls: str = "StableDiffusion3ControlNetPipeline", beside: int = 0) -> Any:
    import diffusers

    found = _parts()
    config = {name: value for name, value in found["transformer"].config.items() if not name.startswith("_")}
    net = diffusers.SD3ControlNetModel.from_config({**config, "num_layers": 1, "extra_conditioning_channels": beside})
    randomized(net, 0.3, "controlnet_blocks", "pos_embed_input")
    return quiet(getattr(diffusers, cls)(controlnet=net.eval(), **found))


def arguments(batch: int, negative: bool = False, **more: Any) -> dict[str, Any]:
    return request(batch, negative, {"max_sequence_length": 16}, more)


def _from_picture(batch: int, negative: bool = False, **more: Any) -> dict[str, Any]:
    given = {"image": pictures(batch), "strength": 0.7, "num_inference_steps": 3, "height": 16, "width": 16}
    return arguments(batch, negative, **{**given, **more})


def _inpaint(batch: int, negative: bool = False, **more: Any) -> dict[str, Any]:
    return _from_picture(batch, negative, **{"mask_image": masks(batch), **more})


def _controlled(batch: int, negative: bool = False, **more: Any) -> dict[str, Any]:
    torch.manual_seed(11)  # the pipeline encodes its picture with the noise of the global generator
    given = {"control_image": pictures(batch), "height": 16, "width": 16}
    return arguments(batch, negative, **{**given, **more})


TEXT_TO_IMAGE = Tiny(_make, arguments)
IMAGE_TO_IMAGE = Tiny(functools.partial(_make, "StableDiffusion3Img2ImgPipeline"), _from_picture)
INPAINT = Tiny(functools.partial(_make, "StableDiffusion3InpaintPipeline", channels=16, seen=16), _inpaint)
INPAINT_33 = Tiny(functools.partial(_make, "StableDiffusion3InpaintPipeline", channels=16, seen=33), _inpaint)
CONTROLNET = Tiny(_make_controlnet, _controlled)
CONTROLNET_INPAINT = Tiny(
    functools.partial(_make_controlnet, "StableDiffusion3ControlNetInpaintingPipeline", beside=1),
    lambda batch, negative=False, **more: _controlled(batch, negative, **{"control_mask": masks(batch), **more}),
)
