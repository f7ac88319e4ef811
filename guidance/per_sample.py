"""Arithmetic of each sample by itself. There is no reduction over the batch anywhere in this project."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def own_axes(value: Tensor) -> tuple[int, ...]:
    """All axes but the batch's."""
    return tuple(range(1, value.ndim))


def dot(a: Tensor, b: Tensor, axes: Sequence[int] | None = None) -> Tensor:
    """Inner product over `axes` (all but the first unless told), which stay with size 1.

    Multiplied and summed, not by a matrix product: those are allowed to round to TF32 on some devices.
    """
    return (a * b).sum(dim=tuple(axes) if axes else own_axes(a), keepdim=True)


def norm(value: Tensor, axes: Sequence[int] | None = None) -> Tensor:
    """Euclidean norm over `axes` (all but the first unless told), which stay with size 1; one pass over the tensor."""
    size: Tensor = torch.linalg.vector_norm(value, dim=tuple(axes) if axes else own_axes(value), keepdim=True)
    return size


def ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """``numerator / denominator``, and 0 where the denominator is 0."""
    zero = denominator == 0
    return (numerator / denominator.masked_fill(zero, 1)).masked_fill_(zero, 0)


def share(value: Tensor, along: Tensor, axes: Sequence[int] | None = None) -> Tensor:
    """The coefficient of the part of `value` that is parallel to `along`, ``<value, along> / <along, along>``.

    0 where `along` is 0; over `axes` (all but the first unless told), which stay with size 1.
    """
    return ratio(dot(value, along, axes), norm(along, axes).square())


def projected(value: Tensor, along: Tensor, keep: float, axes: Sequence[int] | None = None) -> Tensor:
    """`value` with `keep` times the part of it that is parallel to `along`; 0 leaves the perpendicular part alone."""
    return torch.addcmul(value, along, (keep - 1) * share(value, along, axes))


def added(base: Tensor, change: Tensor, scale: float) -> Tensor:
    """``base + scale * change``, rounded as written, in the memory of `change`, which must be the caller's own.

    Rules run at every step: what they cost is passes over memory, and this makes no new tensor.
    """
    return change.mul_(scale).add_(base)
