"""Sizes of what a pipeline makes, in pixels."""

from __future__ import annotations

from typing import Any

from ..guidance.errors import InputError
from .families.lookup import denoisers_of, signature_of
from .families.record import Family, Pipeline

FACTORS = (
    "vae_scale_factor",
    "vae_scale_factor_spatial",
    "vae_spatial_compression_ratio",
    "vae_spatial_scale_factor",
    "movq_scale_factor",
)


def factor(pipe: Pipeline) -> int:
    """Pixels for each number of the latents, along a side: 1 without an autoencoder, 8 where nothing says it."""
    vae: Any = getattr(pipe, "vae", None)
    blocks = getattr(getattr(vae, "config", None), "block_out_channels", None)  # DiT does not say it itself
    return first_of(pipe, FACTORS, 1 if vae is None else 2 ** (len(blocks) - 1) if blocks else 8)


def multiple(pipe: Pipeline) -> int:
    """What height and width in pixels are multiples of: the factor of the latents, and 8 as diffusers asks at least."""
    return max(8, factor(pipe))


def check_sides(height: int, width: int, step: int) -> None:
    """Refuse sides in pixels that are not multiples of `step`.

    Raises:
        InputError: one is not, or is 0.
    """
    if any(side < step or side % step for side in (height, width)):
        raise InputError(
            f"this model makes sizes that are multiples of {step} pixels; got {height}x{width} (height x width)"
        )


def first_of(pipe: Pipeline, names: tuple[str, ...], otherwise: int) -> int:
    """The first of some attributes of a pipeline that it has as a number."""
    found = [int(value) for name in names if isinstance(value := getattr(pipe, name, None), int | float)]
    return found[0] if found else otherwise


def own_size(pipe: Pipeline, family: Family) -> tuple[int, int] | None:
    """Height and width of what a pipeline makes when nothing is said; None where that is not known."""
    takes = signature_of(pipe).parameters
    default: list[Any] = [takes[name].default for name in ("height", "width") if name in takes]
    if default and all(isinstance(side, int) for side in default):
        return default[0], default[-1]
    config: Any = getattr(denoisers_of(pipe, family)[0], "config", {})
    found = getattr(pipe, "default_sample_size", None) or config.get("sample_size")
    sides = tuple(found[-2:]) if isinstance(found, list | tuple) else (found, found)
    if not all(isinstance(side, int) for side in sides):
        return None
    return sides[0] * factor(pipe), sides[1] * factor(pipe)
