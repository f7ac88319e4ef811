"""Small arguments for a call of a pipeline, made from the names that it takes and from its record's `example`."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..families.lookup import denoisers_of, signature_of
from ..families.record import Family, Pipeline
from ..prompts import REPEATS
from ..size import factor, first_of, own_size

BATCH = 2  # samples: with one, rows and halves can be mistaken for each other
STEPS = (2, 4)  # some schedulers have no runs of 2
PROMPTS = ("a cat on a table", "red")  # of different lengths, for masks
NEGATIVES = ("dog", "a blue tree")
FRAMES = ("vae_scale_factor_temporal", "vae_temporal_compression_ratio", "vae_temporal_scale_factor")
SIDES = (8, 16, 32, 64)  # of latents, tried in this order


def examples(pipe: Pipeline, family: Family, given: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Arguments of a call without guidance, the smallest first and at last those of the pipeline's own size.

    Args:
        pipe: the pipeline.
        family: its record.
        given: arguments that are used as they are.
    """
    names = signature_of(pipe).parameters
    shown = _shown(pipe)
    chosen = "height" in given or "width" in given or any(given.get(name) is not None for name in shown)
    sized = not chosen and ("height" in names or bool(shown))
    each_latent, own = factor(pipe), _own_side(pipe, family)
    smaller = [side * each_latent for side in SIDES if sized and (own is None or side * each_latent < own)]
    for side in (*smaller, None):
        for steps in STEPS:
            for each in (True, False) if shown else (True,):
                yield _example(pipe, family, given, side, steps, each)


def samples(call: Mapping[str, Any]) -> int | None:
    """How many samples a call makes; None where it does not say."""
    for name in ("prompt", "prompt_embeds", "class_labels", "batch_size"):
        value = call.get(name)
        if value is not None:
            each = next((int(call[one]) for one in REPEATS if call.get(one)), 1)
            count = 1 if isinstance(value, str) else value if isinstance(value, int) else len(value)
            return int(count) * each
    return None


def fresh(call: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments for one more call: generators where they began, lists that may be written to."""
    renewed = {}
    for name, value in call.items():
        if isinstance(value, list):
            renewed[name] = [_again(one) for one in value]
        else:
            renewed[name] = _again(value)
    return renewed


def _again(value: Any) -> Any:
    if not isinstance(value, torch.Generator):
        return value
    generator = torch.Generator(value.device)
    generator.set_state(value.get_state())
    return generator


def described(pipe: Pipeline, family: Family, steps: int, size: tuple[int, ...]) -> str:
    """What the pipeline was run on, in words."""
    denoiser = denoisers_of(pipe, family)[0]
    weight: Any = next(denoiser.parameters(), torch.empty(0))
    scheduler = type(pipe.scheduler).__name__
    shape = " x ".join(map(str, size))
    kind = str(weight.dtype).removeprefix("torch.")
    return f"samples of {shape}, {steps} steps of {scheduler}, {kind} on {weight.device}"


def _own_side(pipe: Pipeline, family: Family) -> int | None:
    """The shorter side in pixels of what a pipeline makes when nothing is said; None where that is not known."""
    own = own_size(pipe, family)
    return min(own) if own else None


def _shown(pipe: Pipeline) -> list[str]:
    """The arguments for pictures that it needs: `image` is an extra to some that make pictures of text."""
    names = signature_of(pipe).parameters
    found = [name for name in ("control_image", "control_mask", "mask_image", "video") if name in names]
    marks = {"strength", "mask_image", "image_guidance_scale", "max_area"} & set(names)
    controlled = getattr(pipe, "controlnet", None) is not None and "control_image" not in names
    needed = marks or controlled or "ImageToVideo" in type(pipe).__name__
    if "image" in names and (needed or names["image"].default is inspect.Parameter.empty):
        found.append("image")
    return found


def _example(
    pipe: Pipeline, family: Family, given: Mapping[str, Any], side: int | None, steps: int, each: bool
) -> dict[str, Any]:
    """Arguments for pictures of a side in pixels; None for the pipeline's own, with one for each sample or for all."""
    names, shown = signature_of(pipe).parameters, _shown(pipe)
    frames, pixels = first_of(pipe, FRAMES, 4) + 1, side or _own_side(pipe, family) or 512
    call: dict[str, Any] = {
        "prompt": list(PROMPTS),
        "negative_prompt": list(NEGATIVES),
        "num_inference_steps": steps,
        "generator": [torch.Generator().manual_seed(seed) for seed in range(BATCH)],
        "output_type": "latent",  # no decoding
        "num_frames": frames,
        "audio_length_in_s": 1.28,
        # Some would take the nearest of the sizes of their training.
        "use_resolution_binning": False,
        "max_area": pixels**2,
        "_auto_resize": False,
        "clean_caption": False,
    }
    if side is not None:
        call |= {"height": side, "width": side}
    if "strength" in names:
        call |= {"strength": 0.5, "num_inference_steps": 2 * steps}  # the second half
    made: dict[str, list[Any]] = {
        "image": pictures(pixels),
        "control_image": pictures(pixels),
        "mask_image": masks(pixels),
        "control_mask": masks(pixels),
        "video": [[one] * frames for one in pictures(pixels)],
    }
    call |= {name: made[name] if each else made[name][0] for name in shown}
    nets = getattr(getattr(pipe, "controlnet", None), "nets", None)
    if nets is not None:  # several: a picture for each
        name = "control_image" if "control_image" in shown else "image"
        call[name] = [call[name]] * len(nets)
    call = {name: value for name, value in call.items() if name in names}
    call |= dict(family.example(pipe, BATCH)) | dict(given)
    for name in ("prompt", "negative_prompt"):
        if call.get(f"{name}_embeds") is not None and name not in given:
            call.pop(name, None)
    count = samples(call)
    if count is not None and count != BATCH:  # that of arguments that were given
        for name in ("negative_prompt", "generator", *shown):
            if isinstance(call.get(name), list) and name not in given:
                call[name] = (call[name] * count)[:count]
    return call


def pictures(side: int) -> list[Image.Image]:
    """Pictures for a call, a different one for each sample."""
    drawn = np.random.default_rng(3).integers(0, 256, (BATCH, side, side, 3), dtype=np.uint8)
    return [Image.fromarray(one) for one in drawn]


def masks(side: int) -> list[Image.Image]:
    """Masks for a call, a different one for each sample, with a part to be made and a part to be kept."""
    found = []
    for sample in range(BATCH):
        values = np.zeros((side, side), dtype=np.uint8)
        values[:, : side // 2 + sample * side // 4] = 255
        found.append(Image.fromarray(values))
    return found
