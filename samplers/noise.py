"""The initial noise of a run: a function of each sample's own seed, whatever its batch and its device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..guidance.errors import InputError


def generators(seeds: Sequence[int]) -> list[torch.Generator]:
    """One generator a sample, on the CPU: its numbers are the same for every device."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def one_each(seeds: Sequence[int] | None, count: int, of: str = "samples", given: str = "") -> tuple[int, ...]:
    """Return one seed for each sample: the given seeds, else 0, 1, ...

    Args:
        seeds: the given seeds; None for 0 to count - 1.
        count: the number of samples.
        of: what the seeds are for, in messages.
        given: the prefix of the argument's name in messages: ``"guider."``.

    Raises:
        InputError: the number of seeds is not count.
    """
    found = tuple(range(count) if seeds is None else seeds)
    if len(found) != count:
        raise InputError(f"{given}seeds has {len(found)} entries for {count} {of}; give one each")
    return found


def check_seeds(seeds: Sequence[int]) -> None:
    """Refuse a run without seeds, which makes nothing.

    Raises:
        InputError: there are no seeds.
    """
    if not len(seeds):
        raise InputError("seeds is empty, and there is nothing to make; give one for each sample")


def started(noise: Tensor, start: Tensor | None) -> Tensor:
    """Return what a run begins with: `start` in the type and on the device of the noise, or the noise without one.

    Raises:
        InputError: `start` has another shape than the noise.
    """
    if start is None:
        return noise
    if start.shape != noise.shape:
        raise InputError(f"start has shape {tuple(start.shape)}, expected {tuple(noise.shape)}")
    return start.to(noise)


def initial_noise(
    shape: Sequence[int],
    generators: Sequence[torch.Generator],
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Unit-variance noise, shape ``(B, *shape)``: sample i depends on generator i alone.

    Args:
        shape: shape of one sample.
        generators: one for each sample; their states move on.
        dtype: type of the result; the draw itself is in float32.
        device: where to put it.
    """
    return torch.stack([torch.randn(tuple(shape), generator=one, dtype=torch.float32) for one in generators]).to(
        device, dtype
    )


@contextmanager
def seeded(scheduler: Any, seeds: Sequence[int]) -> Iterator[None]:
    """Let a scheduler that draws its noise from Brownian trees (DPM-Solver++ SDE) draw each sample's from its seed.

    By default it seeds them from the global generator, one for the whole batch. A seed that its user set stays.
    """
    if getattr(scheduler, "noise_sampler_seed", 0) is not None:
        yield
        return
    scheduler.noise_sampler_seed = list(seeds)
    try:
        yield
    finally:
        scheduler.noise_sampler_seed = None
