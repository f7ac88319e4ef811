"""Stable Diffusion XL: text to image, from a picture, inpainting, ControlNet, editing."""

from __future__ import annotations

from typing import Any

import torch

from . import Tiny, parts
from .parts import quiet
from .stable_diffusion import (
    controlnet_arguments,
    controlnet_image_to_image_arguments,
    controlnet_inpaint_arguments,
    image_to_image_arguments,
    inpaint_arguments,
    pix2pix_arguments,
)
from .text import WIDTH, clip_encoder, clip_tokenizer, louder, request


def _parts(**unet_options: Any) -> dict[str, Any]:
    from diffusers import EulerDiscreteScheduler

    torch.manual_seed(0)
    unet = parts.unet(
        2 * WIDTH,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=WIDTH + 6 * 4,
        **unet_options,
    )
    louder(unet, ("attn2.to_v", "attn2.to_out", "add_embedding"), 6)
    return {
        "vae": parts.vae(),
        "text_encoder": clip_encoder(),
        "text_encoder_2": clip_encoder(projection=True),
        "tokenizer": clip_tokenizer(),
        "tokenizer_2": clip_tokenizer(),
        "unet": unet,
        "scheduler": EulerDiscreteScheduler(steps_offset=1, timestep_spacing="leading"),
        "add_watermarker": False,
    }


def arguments(batch: int, negative: bool = False, **more: Any) -> dict[str, Any]:
    return request(batch, negative, {}, more)


def make() -> Any:
    from diffusers import StableDiffusionXLPipeline

    return quiet(StableDiffusionXLPipeline(**_parts()))


def make_image_to_image() -> Any:
    from diffusers import StableDiffusionXLImg2ImgPipeline

    return quiet(StableDiffusionXLImg2ImgPipeline(**_parts()))


def make_inpaint() -> Any:
    from diffusers import StableDiffusionXLInpaintPipeline

    return quiet(StableDiffusionXLInpaintPipeline(**_parts()))


def make_inpaint_9() -> Any:
    from diffusers import StableDiffusionXLInpaintPipeline

    return quiet(StableDiffusionXLInpaintPipeline(**_parts(in_channels=9)))


def make_controlnet() -> Any:
    from diffusers import StableDiffusionXLControlNetPipeline

    found = _parts()
    return quiet(StableDiffusionXLControlNetPipeline(controlnet=parts.controlnet(found["unet"]), **found))


def make_controlnet_image_to_image() -> Any:
    from diffusers import StableDiffusionXLControlNetImg2ImgPipeline

    found = _parts()
    return quiet(StableDiffusionXLControlNetImg2ImgPipeline(controlnet=parts.controlnet(found["unet"]), **found))


def make_controlnet_inpaint() -> Any:
    from diffusers import StableDiffusionXLControlNetInpaintPipeline

    found = _parts()
    return quiet(StableDiffusionXLControlNetInpaintPipeline(controlnet=parts.controlnet(found["unet"]), **found))


def make_pix2pix() -> Any:
    from diffusers import StableDiffusionXLInstructPix2PixPipeline

    return quiet(StableDiffusionXLInstructPix2PixPipeline(**_parts(in_channels=8)))


TEXT_TO_IMAGE = Tiny(make, arguments)
IMAGE_TO_IMAGE = Tiny(make_image_to_image, image_to_image_arguments)
INPAINT = Tiny(make_inpaint, inpaint_arguments)
INPAINT_9 = Tiny(make_inpaint_9, inpaint_arguments)
CONTROLNET = Tiny(make_controlnet, controlnet_arguments)
CONTROLNET_IMAGE_TO_IMAGE = Tiny(make_controlnet_image_to_image, controlnet_image_to_image_arguments)
CONTROLNET_INPAINT = Tiny(make_controlnet_inpaint, controlnet_inpaint_arguments)
PIX2PIX = Tiny(make_pix2pix, pix2pix_arguments)
