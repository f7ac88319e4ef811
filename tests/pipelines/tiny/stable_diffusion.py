"""Stable Diffusion beyond text to image: from a picture, inpainting with both kinds of UNet, ControlNet, editing."""

from __future__ import annotations

from typing import Any

from ...conftest import make_stable_diffusion
from . import Tiny, parts
from .parts import masks, pictures, quiet
from .text import request


def _parts(**unet_options: Any) -> dict[str, Any]:
    found: dict[str, Any] = make_stable_diffusion(**unet_options).components
    return found | {"requires_safety_checker": False}


def make_image_to_image() -> Any:
    from diffusers import StableDiffusionImg2ImgPipeline

    return quiet(StableDiffusionImg2ImgPipeline(**_parts()))


def image_to_image_arguments(batch: int, negative: bool = False, **more: Any) -> dict[str, Any]:
    return request(batch, negative, {"image": pictures(batch), "strength": 0.7, "num_inference_steps": 3}, more)


def make_inpaint() -> Any:
    """With the plain UNet of 4 channels: the known part is put back after each step."""
    from diffusers import StableDiffusionInpaintPipeline

    return quiet(StableDiffusionInpaintPipeline(**_parts()))


def make_inpaint_9() -> Any:
    """With a UNet that also sees the mask and the masked picture."""
    from diffusers import StableDiffusionInpaintPipeline

    return quiet(StableDiffusionInpaintPipeline(**_parts(in_channels=9)))


def inpaint_arguments(batch: int, negative: bool = False, **more: Any) -> dict[str, Any]:
    given = {"image": pictures(batch), "mask_image": masks(batch), "num_inference_steps": 3}
    return request(batch, negative, given, more)


def make_controlnet() -> Any:
    from diffusers import StableDiffusionControlNetPipeline

    found = _parts()
    return quiet(StableDiffusionControlNetPipeline(controlnet=parts.controlnet(found["unet"]), **found))


def controlnet_arguments(batch: int, negative: bool = False, **more: Any) -> dict[str, Any]:
    return request(batch, negative, {"image": list(pictures(batch))}, more)


def make_controlnet_image_to_image() -> Any:
    from diffusers import StableDiffusionControlNetImg2ImgPipeline

    found = _parts()
    return quiet(StableDiffusionControlNetImg2ImgPipeline(controlnet=parts.controlnet(found["unet"]), **found))


def controlnet_image_to_image_arguments(batch: int, negative: bool = False, **more: Any) -> dict[str, Any]:
    return image_to_image_arguments(batch, negative, **{"control_image": list(pictures(batch).flip(2)), **more})


def make_controlnet_inpaint() -> Any:
    from diffusers import StableDiffusionControlNetInpaintPipeline

    found = _parts()
    return quiet(StableDiffusionControlNetInpaintPipeline(controlnet=parts.controlnet(found["unet"]), **found))


def controlnet_inpaint_arguments(batch: int, negative: bool = False, **more: Any) -> dict[str, Any]:
    return inpaint_arguments(batch, negative, **{"control_image": list(pictures(batch).flip(2)), **more})


def make_pix2pix() -> Any:
    from diffusers import StableDiffusionInstructPix2PixPipeline

    return quiet(StableDiffusionInstructPix2PixPipeline(**_parts(in_channels=8)))


def pix2pix_arguments(batch: int, negative: bool = False, **more: Any) -> dict[str, Any]:
    return request(batch, negative, {"image": pictures(batch)}, more)


IMAGE_TO_IMAGE = Tiny(make_image_to_image, image_to_image_arguments)
INPAINT = Tiny(make_inpaint, inpaint_arguments)
INPAINT_9 = Tiny(make_inpaint_9, inpaint_arguments)
CONTROLNET = Tiny(make_controlnet, controlnet_arguments)
CONTROLNET_IMAGE_TO_IMAGE = Tiny(make_controlnet_image_to_image, controlnet_image_to_image_arguments)
CONTROLNET_INPAINT = Tiny(make_controlnet_inpaint, controlnet_inpaint_arguments)
PIX2PIX = Tiny(make_pix2pix, pix2pix_arguments)
