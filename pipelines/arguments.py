"""Checks of a call's arguments, which refuse in one line what would otherwise fail deep inside a pipeline."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from ..guidance.errors import InputError, shown
from ..guidance.fields import count, plain

COUNTS = (
    "num_inference_steps",
    "num_images_per_prompt",
    "num_videos_per_prompt",
    "num_waveforms_per_prompt",
    "batch_size",
    "height",
    "width",
    "num_frames",
)
TEXT = re.compile(r"(negative_)?prompt(_\d)?")
CALLBACKS = ("callback_on_step_end", "callback")
FILLED = re.compile(r"prompt(_\d)?|timesteps|sigmas|class_labels")


def checked(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Check the arguments of a call by name, and return them with numbers of other libraries converted to Python's.

    Raises:
        InputError: a count or size is no whole number above 0, a list is empty, a prompt is no text, or a generator or
            callback is none.
    """
    found = dict(arguments)
    for name in COUNTS:
        if found.get(name) is not None:
            found[name] = count(name, found[name])
    if (call := found.get("callback_on_step_end")) is not None and not callable(call):
        raise InputError(f"callback_on_step_end is a function, called behind each step; got {shown(call)}")
    for name, value in found.items():
        several, filled = isinstance(value, list | tuple), FILLED.fullmatch(name)
        if several and filled and not value:
            raise InputError(f"{name} is an empty list, and there is nothing to make; fill it, or leave it out")
        each = value if several else [value]
        if name == "generator" and not all(isinstance(one, torch.Generator | None) for one in each):
            raise InputError(f"generator is a torch.Generator, or a list of one for each sample; got {shown(value)}")
        for one in each if TEXT.fullmatch(name) else ():
            if isinstance(plain(one), bool | int | float | bytes) or (one is None and several and filled):
                raise InputError(f"{name} is a text, or a list of one for each sample; got {shown(value)}")
    return found


def calls_back(arguments: Mapping[str, Any]) -> bool:
    """Whether a call has a callback, which may exchange the conditions between two steps."""
    return any(arguments.get(name) is not None for name in CALLBACKS)
