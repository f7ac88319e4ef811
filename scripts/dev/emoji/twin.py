"""Twins of the bundled model, each a small file: the weak twin, an earlier checkpoint, and the flow twin.

A file has the difference of two denoisers, in the form of `guidestack.pipelines.models.differences.twin`: the largest
singular parts of each weight's difference, in 8 bits. Parts are chosen by how much they explain for their size. Parts
at 16x16 count four times, because their weights act at four times as many places as those at 8x8.

The weak twin changes the modules at 8x8 only, where shapes are decided, and is stronger than the checkpoint by what is
left out. With a share of the difference at 16x16 it errs in how much noise it leaves, and autoguidance covers the
pictures with specks, which it does not with the whole difference.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from ....guidance.errors import InputError
from ....guidance.files import replacing
from ....pipelines.models.differences import PROBE

LEVELS = 127  # of 8 bits with a sign
SMALL = ("down_blocks.1", "mid_block", "up_blocks.0")
"""The modules at 8x8."""
PROBED = 64  # values of a weight that tell what the difference is from


@dataclass(frozen=True)
class Written:
    """The account of a written difference.

    Attributes:
        size: bytes of the file.
        explained: share of the squared difference that is in it.
        away: norm of the whole difference over that of the weights.
    """

    size: int
    explained: float
    away: float


def write_twin(
    network: Mapping[str, Tensor],
    other: Mapping[str, Tensor],
    to: Path,
    numbers: int,
    chosen: tuple[str, ...] = SMALL,
) -> Written:
    """Write the difference of two networks of one shape.

    Args:
        network: weights of the network.
        other: weights of the twin.
        to: the file.
        numbers: numbers of 8 bits that it may have.
        chosen: the first letters of the names of the weights that it may change.

    Raises:
        InputError: the two are of different shapes, or equal.
    """
    shapes = [{name: tuple(value.shape) for name, value in one.items()} for one in (network, other)]
    if shapes[0] != shapes[1]:
        raise InputError("the two networks have other weights; give another checkpoint of the same one")
    differences = {name: other[name].float() - network[name].float() for name in network}
    whole = sum(float((one**2).sum()) for one in differences.values())
    if not whole:
        raise InputError("the two networks are equal; give another checkpoint")
    parts = {
        name: torch.linalg.svd(_matrix(one), full_matrices=False)
        for name, one in differences.items()
        if name.startswith(chosen)
    }
    offered = [
        (_places(name) * float(s) ** 2 / (len(u) + vh.shape[1]), len(u) + vh.shape[1], name, rank)
        for name, (u, values, vh) in parts.items()
        for rank, s in enumerate(values, 1)
    ]
    ranks: dict[str, int] = {}
    left = numbers
    for _, size, name, rank in sorted(offered, reverse=True):
        if size > left:
            break
        left, ranks[name] = left - size, rank
    tensors: dict[str, Tensor] = {}
    rest = whole
    for name, rank in ranks.items():
        u, values, vh = parts[name]
        written = _written(u[:, :rank], values[:rank], vh[:rank])
        change = (written["left"].float() * written["scale"].float()) @ written["right"].float()
        rest += float(((_matrix(differences[name]) - change) ** 2).sum()) - float((differences[name] ** 2).sum())
        tensors |= {f"{name}.{part}": value.contiguous() for part, value in written.items()}
    for name in sorted(ranks, key=lambda one: -network[one].numel())[:2]:
        tensors[PROBE + name] = network[name].reshape(-1)[:PROBED].half().clone()
    with replacing(to) as beside:
        save_file(tensors, beside)
    to.chmod(0o644)  # safetensors writes for the owner only
    norm = sum(float((one.float() ** 2).sum()) for one in network.values())
    return Written(to.stat().st_size, 1 - rest / whole, (whole / norm) ** 0.5)


def _places(name: str) -> int:
    """Return the number of places at which a weight acts, divided by that of weights at 8x8."""
    return 1 if name.startswith(SMALL) else 4


def _matrix(value: Tensor) -> Tensor:
    return value.reshape(len(value), -1) if value.ndim > 1 else value.reshape(1, -1)


def _written(u: Tensor, values: Tensor, vh: Tensor) -> dict[str, Tensor]:
    """Singular parts in 8 bits: each column of `u` and each row of `vh` by its largest number."""
    largest = u.abs().amax(0).clamp(min=1e-12), vh.abs().amax(1).clamp(min=1e-12)
    return {
        "left": (u / largest[0] * LEVELS).round().to(torch.int8),
        "right": (vh / largest[1][:, None] * LEVELS).round().to(torch.int8),
        "scale": (values * largest[0] * largest[1] / LEVELS**2).float(),
    }
