"""Encoding of pictures to latents: the mean of the pipeline's own autoencoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..guidance.errors import InputError, UnsupportedPipelineError
from .families.lookup import signature_of
from .families.record import Pipeline
from .size import check_sides, multiple


def latents_of(pipe: Pipeline, image: Any, dtype: torch.dtype) -> Tensor:
    """The latents of pictures, or the latents given, on the device of the pipeline.

    Args:
        pipe: a pipeline.
        image: a PIL image, a list of them, a tensor ``(B, 3, H, W)`` or ``(3, H, W)`` of pictures in [0, 1], or a
            tensor of latents: one with as many channels as the autoencoder's latents have, and any tensor for a
            pipeline whose autoencoder is of another kind than ``AutoencoderKL``.
        dtype: type of what a picture becomes; latents keep theirs.

    Raises:
        InputError: another form, pictures of different sizes, or of a size that the pipeline does not make.
        UnsupportedPipelineError: how this pipeline makes latents of a picture is not known.
    """
    channels, reason = encodes(pipe)
    if isinstance(image, Tensor) and (reason or image.ndim == 4) and (reason or image.shape[1] == channels != 3):
        return image.to(pipe._execution_device)
    if reason:
        raise UnsupportedPipelineError(
            f"{type(pipe).__name__}: {reason}, and how to encode a picture to latents is not known; give the latents "
            "themselves as image="
        )
    return encoded(pipe, pixels(image, multiple(pipe))).to(dtype)


def check_latents(pipe: Pipeline, otherwise: str) -> None:
    """Refuse a pipeline that begins from pictures, or takes no latents.

    Args:
        pipe: a pipeline.
        otherwise: what follows from it, for the message.

    Raises:
        UnsupportedPipelineError: it does.
    """
    takes = signature_of(pipe).parameters
    if "latents" not in takes or "image" in takes:
        what = "takes an image itself" if "image" in takes else "takes no latents"
        raise UnsupportedPipelineError(f"{type(pipe).__name__} {what}: {otherwise}")


def encodes(pipe: Pipeline) -> tuple[int, str]:
    """Return the channels of a picture's latents, or as a text why pictures cannot be encoded."""
    vae: Any = getattr(pipe, "vae", None)
    if type(vae).__name__ != "AutoencoderKL":
        return 0, f"its autoencoder is {type(vae).__name__}" if vae is not None else "it has no autoencoder"
    if hasattr(pipe, "_pack_latents"):
        return 0, "it packs its latents"
    if vae.config.get("latents_mean") is not None:
        return 0, "it standardizes its latents"
    return int(vae.config.latent_channels), ""


def pixels(image: Any, factor: int) -> Tensor:
    """Pictures as a tensor ``(B, 3, H, W)`` in [-1, 1].

    Raises:
        InputError: another form, different sizes, or sides that are no multiples of `factor`.
    """
    if isinstance(image, Tensor):
        found = image[None] if image.ndim == 3 else image
        if found.ndim != 4 or found.shape[1] != 3 or not found.is_floating_point():
            raise InputError(
                f"a tensor of pictures has shape (B, 3, H, W) and floating-point values in [0, 1]; got {found.dtype} "
                f"{tuple(image.shape)}"
            )
    else:
        several = list(image) if isinstance(image, Sequence) else [image]
        if not several or not all(isinstance(one, Image.Image) for one in several):
            got = "none" if image is None else type(image).__name__
            raise InputError(f"image= takes PIL images, or a tensor of pictures or of latents; got {got}")
        if len({one.size for one in several}) > 1:
            sizes = ", ".join(sorted({f"{one.height}x{one.width}" for one in several}))
            raise InputError(f"pictures of one call have one size; got {sizes} (height x width)")
        found = torch.stack([torch.from_numpy(np.array(on_white(one))) for one in several]).permute(0, 3, 1, 2) / 255
    height, width = found.shape[2:]
    check_sides(height, width, factor)
    return 2 * found - 1


def on_white(image: Image.Image) -> Image.Image:
    """Return the picture in RGB, with white where it is transparent."""
    if image.mode == "RGB":
        return image
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


@torch.no_grad()
def encoded(pipe: Pipeline, pictures: Tensor) -> Tensor:
    """The mean of what the autoencoder answers, in the scaling that the pipeline keeps its latents in."""
    vae = pipe.vae
    config, dtype = vae.config, vae.dtype
    # Such an autoencoder overflows in float16; the pipelines themselves run it in float32.
    upcast = dtype == torch.float16 and bool(config.get("force_upcast"))
    if upcast:
        vae.to(dtype=torch.float32)
    try:
        mean = vae.encode(pictures.to(pipe._execution_device, vae.dtype)).latent_dist.mode()
    finally:
        if upcast:
            vae.to(dtype=dtype)
    shift = config.get("shift_factor") or 0.0
    return (mean - shift) * config.scaling_factor  # type: ignore[no-any-return]
