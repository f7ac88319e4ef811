"""Randomness inside a run: a generator for each sample, step and purpose, from the sample's seed alone.

What a sample draws depends on nothing else: not on its neighbours in the batch, not on the device, not on which rules
drew before, and a run that is resumed in the middle draws what it would have drawn.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch


def keyed(seed: int, *key: object) -> torch.Generator:
    """A generator on the CPU whose numbers are a function of `seed` and `key`, plain numbers and strings."""
    digest = hashlib.blake2b(repr((seed, *key)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest) >> 1)


@dataclass(frozen=True)
class Keys:
    """Where randomness of one evaluation comes from.

    Args:
        seeds: one for each sample.
        index: step of the sampler.
        evaluation: evaluation within the step.
    """

    seeds: tuple[int, ...]
    index: int = 0
    evaluation: int = 0

    def generators(self, samples: Sequence[int], purpose: str) -> list[torch.Generator]:
        """A generator for each of `samples`."""
        return [keyed(self.seeds[sample], self.index, self.evaluation, purpose) for sample in samples]
