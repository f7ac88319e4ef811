"""Arguments of a call that no pipeline can use, refused in words before they end in an error from deep inside one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ..guidance.errors import InputError, shown
from ..guidance.fields import count, plain

COUNTS = (
    "num_inference_steps",
    "num_images_per_prompt",
    "num_videos_per_prompt",
    "num_waveforms_per_prompt",
    "batch_size",
)
TEXT = re.compile(r"(negative_)?prompt(_\d)?")
LISTS = ("timesteps", "sigmas", "class_labels")


def checked(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call by name, with numbers of other libraries as Python's.

    Raises:
        InputError: a count is no whole number above 0, a list is empty, or a prompt is no text.
    """
    found = dict(arguments)
    for name in found.keys() & set(COUNTS):
        if found[name] is not None:
            found[name] = count(name, found[name])
    for name, value in found.items():
        text = TEXT.fullmatch(name)
        # An empty list of negatives says that a prompt has none.
        if isinstance(value, list | tuple) and not value and (name in LISTS or (text and not text[1])):
            raise InputError(f"{name} is an empty list, and there is nothing to make; fill it, or leave it out")
        for one in (value if isinstance(value, list | tuple) else [value]) if text else ():
            if isinstance(plain(one), bool | int | float | bytes) or (one is None and isinstance(value, list | tuple)):
                raise InputError(f"{name} is a text, or a list of one for each sample; got {shown(value)}")
    return found
