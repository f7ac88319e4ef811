"""Flux: with a network that is not distilled and one that takes its scale as an input (dev); pictures, ControlNet."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import torch

from . import Tiny
from .parts import flow, masks, pictures, quiet, randomized, vae
from .text import WIDTH, clip_encoder, clip_tokenizer, louder, request, t5_encoder, t5_tokenizer


def _parts(distilled: bool = False) -> dict[str, Any]:
    from diffusers import FluxTransformer2DModel

    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=1,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=distilled,
        axes_dims_rope=(4, 4, 8),
    )
    louder(transformer, ("add_v_proj", "to_out", "context_embedder", "text_embedder", "guidance_embedder"), 4)
    return {
        "scheduler": flow(use_dynamic_shifting=True),
        "vae": vae(shift_factor=0.0),
        "text_encoder": clip_encoder(),
        "tokenizer": clip_tokenizer(),
        "text_encoder_2": t5_encoder(),
        "tokenizer_2": t5_tokenizer(),
        "transformer": transformer,
    }


def _make(cls: str = "FluxPipeline", **options: Any) -> Any:
    import diffusers

    return quiet(getattr(diffusers, cls)(**_parts(**options)))


def _make_controlnet() -> Any:
    from diffusers import FluxControlNetModel, FluxControlNetPipeline

    found = _parts()
    config = found["transformer"].config
    names = ("in_channels", "num_layers", "num_single_layers", "attention_head_dim", "num_attention_heads",
             "joint_attention_dim", "pooled_projection_dim", "axes_dims_rope")  # fmt: skip
    with warnings.catch_warnings():
        # diffusers 0.42.1 itself still uses a name that it deprecates.
        warnings.filterwarnings("ignore", ".*FluxPosEmbed", FutureWarning)
        net = FluxControlNetModel(**{name: config[name] for name in names})
    randomized(net, 0.3, "controlnet_blocks", "controlnet_single_blocks", "controlnet_x_embedder")
    return quiet(FluxControlNetPipeline(controlnet=net.eval(), **found))


def _arguments(batch: int, negative: bool = False, **more: Any) -> dict[str, Any]:
    return request(batch, negative, {"height": 16, "width": 16, "max_sequence_length": 16}, more)


def _from_picture(batch: int, negative: bool = False, **more: Any) -> dict[str, Any]:
    given = {"image": pictures(batch), "strength": 0.7, "num_inference_steps": 3}
    return _arguments(batch, negative, **{**given, **more})


def _inpaint(batch: int, negative: bool = False, **more: Any) -> dict[str, Any]:
    return _from_picture(batch, negative, **{"mask_image": masks(batch), **more})


def _controlled(batch: int, negative: bool = False, **more: Any) -> dict[str, Any]:
    return _arguments(batch, negative, **{"control_image": pictures(batch), **more})


def _edit(batch: int, negative: bool = False, **more: Any) -> dict[str, Any]:
    given = {"image": pictures(batch), "max_area": 256, "_auto_resize": False}
    return _arguments(batch, negative, **{**given, **more})


OPEN = Tiny(_make, _arguments, "true_cfg_scale")
DISTILLED = Tiny(functools.partial(_make, distilled=True), _arguments, "true_cfg_scale")
IMAGE_TO_IMAGE = Tiny(functools.partial(_make, "FluxImg2ImgPipeline"), _from_picture, "true_cfg_scale")
INPAINT = Tiny(functools.partial(_make, "FluxInpaintPipeline"), _inpaint, "true_cfg_scale")
CONTROLNET = Tiny(_make_controlnet, _controlled, "true_cfg_scale")
EDIT = Tiny(functools.partial(_make, "FluxKontextPipeline"), _edit, "true_cfg_scale")
