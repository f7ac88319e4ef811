"""Row arguments, those of a denoiser that have one row a sample: how to take some of their rows and to join them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Index = slice | Tensor


def take(value: Any, index: Index, axis: int = 0, listed: bool = False) -> Any:
    """The rows of a per-row argument: a tensor, None, a list of tensors, or a list with an entry a row (`listed`)."""
    if value is None:
        return None
    if listed:
        return value[index] if isinstance(index, slice) else [value[row] for row in index.tolist()]
    if isinstance(value, list | tuple):
        return type(value)(take(item, index) for item in value)
    if axis:
        return value[(slice(None),) * axis + (index,)]
    return value[index]


def join(values: Sequence[Any], axis: int = 0, listed: bool = False) -> Any:
    """Join rows of one per-row argument into a batch; the values have one form, that of `take`."""
    if values[0] is None:
        return None
    if listed:
        return [row for value in values for row in value]
    if isinstance(values[0], list | tuple):
        return type(values[0])(join(items) for items in zip(*values, strict=True))
    return torch.cat(list(values), axis) if len(values) > 1 else values[0]


def look_up(arguments: Mapping[str, Any], path: str) -> Any:
    """``arguments["a"]["b"]`` for the path ``"a.b"``; None where nothing is there."""
    value: Any = arguments
    for key in path.split("."):
        if value is None or key not in value:
            return None
        value = value[key]
    return value


def put(arguments: dict[str, Any], path: str, value: Any) -> None:
    """Set ``arguments["a"]["b"]`` for the path ``"a.b"``, copying the dictionaries on the way."""
    *outer, last = path.split(".")
    for key in outer:
        arguments[key] = dict(arguments[key])
        arguments = arguments[key]
    arguments[last] = value


def copied(value: Any) -> Any:
    """A copy of a dictionary or a list, not of what is in it; anything else as it is."""
    return type(value)(value) if type(value) in (dict, list) else value


def matching(value: Any, own: Any) -> Any:
    """`value` in the type and on the device of `own`; a list is converted entry by entry."""
    if isinstance(value, list | tuple) and own:
        return [matching(one, own[0]) for one in value]
    return value.to(own) if isinstance(value, Tensor) and isinstance(own, Tensor) else value
