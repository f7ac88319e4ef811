"""Per-sample arithmetic. There is no reduction over the batch anywhere in this project."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def own_axes(value: Tensor) -> tuple[int, ...]:
    """All axes but the batch's."""
    return tuple(range(1, value.ndim))


def dot(a: Tensor, b: Tensor, axes: Sequence[int] | None = None) -> Tensor:
    """Return the inner product of each sample, over `axes`, which stay with size 1.

    Multiplied and summed, not by a matrix product: those are allowed to round to TF32 on some devices.

    Args:
        a: shape ``(B, ...)``.
        b: the same shape.
        axes: axes to sum over, counted with the batch as axis 0; None for all but the batch.
    """
    return (a * b).sum(dim=tuple(axes) if axes else own_axes(a), keepdim=True)


def norm(value: Tensor, axes: Sequence[int] | None = None) -> Tensor:
    """Return the Euclidean norm of each sample, over `axes`, which stay with size 1.

    Args:
        value: shape ``(B, ...)``.
        axes: axes of the norm, counted with the batch as axis 0; None for all but the batch.

    Cost: one pass over the tensor.
    """
    size: Tensor = torch.linalg.vector_norm(value, dim=tuple(axes) if axes else own_axes(value), keepdim=True)
    return size


def ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Return ``numerator / denominator``, and 0 where the denominator is 0.

    Args:
        numerator: any shape.
        denominator: a shape that broadcasts with it.
    """
    zero = denominator == 0
    return (numerator / denominator.masked_fill(zero, 1)).masked_fill_(zero, 0)


def share(value: Tensor, along: Tensor, axes: Sequence[int] | None = None) -> Tensor:
    """Return the coefficient of the part of `value` that is parallel to `along`, ``<value, along> / <along, along>``.

    It is 0 where `along` is 0. The axes are those of `dot`.
    """
    return ratio(dot(value, along, axes), norm(along, axes).square())


def projected(value: Tensor, along: Tensor, keep: float, axes: Sequence[int] | None = None) -> Tensor:
    """Return `value` with its part parallel to `along` multiplied by `keep`; 0 leaves the perpendicular part."""
    return torch.addcmul(value, along, (keep - 1) * share(value, along, axes))


def added(base: Tensor, change: Tensor, scale: float) -> Tensor:
    """Return ``base + scale * change``, rounded as written, in the memory of `change`, which must be the caller's own.

    A rule runs at every step and costs passes over memory; this makes no new tensor.
    """
    return change.mul_(scale).add_(base)
