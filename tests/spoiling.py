"""A rule that loses samples, for tests of what becomes of the others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

import guidestack as gs
from guidestack.guidance.notation.registry import _ENTRIES
from guidestack.guidance.step import Estimate


@dataclass(frozen=True)
class Spoil(gs.Rule):
    """From step `start` on, samples with this seed are NaN or Inf.

    Args:
        seed: of the sample.
        start: step of the sampler.
        value: what its numbers are.
    """

    seed: int
    start: int = 0
    value: float = float("nan")

    def __str__(self) -> str:
        return f"spoil({self.seed}, start={self.start})"

    def update(self, estimate: Estimate, predictions: Any, step: Any, state: Any) -> Any:
        """Spoil the sample."""
        if step.index < self.start or self.seed not in step.run.seeds:
            return estimate, state
        native = estimate.prediction.native
        mine = torch.tensor([seed == self.seed for seed in step.run.seeds]).to(native.device, non_blocking=True)
        mine = mine.reshape(-1, *[1] * (native.ndim - 1))
        return estimate.replace("any", torch.where(mine, torch.full_like(native, self.value), native)), state


@contextmanager
def registered() -> Iterator[None]:
    """While the context lasts, the rule has the name ``spoil`` in text."""
    gs.register("spoil")(Spoil)
    try:
        yield
    finally:
        del _ENTRIES["spoil"]
