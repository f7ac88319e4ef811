"""Decoding of clean samples to pictures, with gradients, for objectives that see pixels."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..guidance.errors import UnsupportedPipelineError
from ..guidance.notation.objectives import objectives
from ..guidance.objective import Objectives
from ..guidance.rule import Stack, objectives_of
from .families.record import Call, Pipeline
from .latents import encodes, latents_of
from .size import factor

AT_ONCE = 2**20
"""Pixels that are decoded at once where a gradient is taken: one picture of 1024 x 1024, four of 512 x 512."""


def cannot_decode(pipe: Pipeline) -> str:
    """Return why this pipeline's clean samples cannot be decoded to pictures; "" if they can."""
    vae: Any = getattr(pipe, "vae", None)
    if vae is None:
        other = next((name for name in ("vqvae", "vqgan", "movq", "first_stage") if hasattr(pipe, name)), "")
        return f"has {other}, of which no decoder is known" if other else ""
    if type(vae).__name__ != "AutoencoderKL":
        return f"has the autoencoder {type(vae).__name__}, and only AutoencoderKL is known to make pictures here"
    if (channels := vae.config.get("out_channels", 3)) != 3:
        return f"has an autoencoder that makes {channels} channels and no pictures of three"
    return ""


def decoded(pipe: Pipeline, size: tuple[int, int] | None, x0: Tensor) -> Tensor:
    """The pictures of clean samples, ``(B, 3, H, W)`` with values in [0, 1] that are not clamped.

    Args:
        pipe: the pipeline.
        size: height and width in pixels, where samples are packed into tokens.
        x0: clean samples as the denoiser has them.
    """
    vae: Any = getattr(pipe, "vae", None)
    if vae is None:
        return x0 / 2 + 0.5
    if size is not None:
        x0 = pipe._unpack_latents(x0, *size, pipe.vae_scale_factor)
    config = vae.config
    latents = x0
    if config.get("latents_mean") is not None and config.get("latents_std") is not None:
        mean, std = (
            torch.tensor(config[name], dtype=x0.dtype).to(x0.device, non_blocking=True).reshape(1, -1, 1, 1)
            for name in ("latents_mean", "latents_std")
        )
        latents = latents * std / config.scaling_factor + mean
    else:
        latents = latents / config.scaling_factor + (config.get("shift_factor") or 0.0)
    pictures: Tensor = vae.decode(latents.to(next(vae.parameters()).dtype), return_dict=False)[0]
    return pictures.float() / 2 + 0.5


def sampled(pipe: Pipeline, pictures: Tensor) -> Tensor:
    """Clean samples of pictures, ``(B, 3, H, W)`` with values in [0, 1]: the other way.

    Raises:
        InputError: the autoencoder takes no pictures of that size.
        UnsupportedPipelineError: how this pipeline makes latents of a picture is not known.
    """
    if getattr(pipe, "vae", None) is None:
        return 2 * pictures - 1
    if reason := encodes(pipe)[1]:
        raise UnsupportedPipelineError(
            f"{type(pipe).__name__}: {reason}, and how to encode a picture to latents is not known here; steer towards "
            "what is known with tfg, mu=0.3, or take the family's own pipeline for inpainting"
        )
    return latents_of(pipe, pictures, torch.float32)


def pictured(pipe: Pipeline, call: Call, stack: Stack, given: Mapping[str, Any] | None, x: Tensor) -> Objectives:
    """The objectives of one call of a pipeline, which see pictures by its own decoder.

    Args:
        pipe: the pipeline.
        call: the arguments that it is called with.
        stack: the stack.
        given: as in `guide`.
        x: the samples of the call.
    """
    if not objectives_of(stack):
        return objectives(given)
    pixels = factor(pipe)
    packed = None
    if x.ndim == 3 and hasattr(pipe, "_unpack_latents"):
        side = pipe.default_sample_size * pixels
        packed = call.get("height") or side, call.get("width") or side
    height, width = packed or (x.shape[-2] * pixels, x.shape[-1] * pixels)
    rows = max(1, AT_ONCE // (height * width))
    decode, encode = functools.partial(decoded, pipe, packed), functools.partial(sampled, pipe)
    return objectives(given, decode, rows, (height, width), encode)
