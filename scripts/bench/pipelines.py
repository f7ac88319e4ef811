"""The bundled model under each rule against the stock pipeline with its own guidance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...pipelines import guide

SCALE, STEPS = 4.0, 20


@dataclass(frozen=True)
class Side:
    """One stack to time.

    Args:
        name: in the table.
        stack: its text; "" for the stock pipeline without guidance.
        negatives: negative prompts of each image.
        limit: time over the stock pipeline's that is not to be exceeded; None where nothing is asked.
        per_evaluation: whether `limit` is of the time ratio over the ratio of evaluations.
    """

    name: str
    stack: str
    negatives: tuple[str, ...] = ()
    limit: float | None = 1.03
    per_evaluation: bool = False


# Half of the evaluations, and more than half of the time: text, decoding, and calls with fewer rows.
UNGUIDED = Side("stock at scale 1", "", limit=None)
NEGATIVES = ("dog face", "bear", "mouse face")
SIDES = (
    UNGUIDED,
    Side("CFG", "cfg(4)", limit=1.02),
    Side("Perp-Neg, 1 negative", "perpneg(4)", NEGATIVES[:1], 1.50),
    Side("Perp-Neg, 3 negatives", "perpneg(4)", NEGATIVES, 2.45),
    Side("APG", "apg(4, radius=2, momentum=-0.5)"),
    Side("ICG", "icg(4)"),
    Side("CFG and Rescale", "cfg(4) | rescale(0.7)"),
    Side("CFG++", "cfgpp(0.6)"),
    Side("Adaptive Guidance", "adaptive(cfg(4), threshold=0.99, space='denoised')", per_evaluation=True),
)


class Bench:
    """A pipeline with the same prompts and seeds for everybody.

    Args:
        pipe: a pipeline with prompts.
        batch: images of a run.
        steps: steps of a run.
    """

    def __init__(self, pipe: Any, batch: int, steps: int = STEPS) -> None:
        self.pipe, self.batch, self.steps = pipe, batch, steps

    def _given(self) -> dict[str, Any]:
        generators = [torch.Generator().manual_seed(sample) for sample in range(self.batch)]
        return {"prompt": ["cat face"] * self.batch, "num_inference_steps": self.steps, "generator": generators}

    def stock(self, scale: float = SCALE) -> None:
        """The pipeline by itself, with its own classifier-free guidance."""
        self.pipe(guidance_scale=scale, **self._given())

    def guided(self, side: Side) -> Callable[[], float]:
        """A run under a stack, which returns its evaluations over those of the stock pipeline's."""
        if not side.stack:

            def alone() -> float:
                self.stock(1.0)
                return 0.5

            return alone
        guided = guide(self.pipe, side.stack)
        more = {"negative_prompt": [list(side.negatives)] * self.batch} if side.negatives else {}

        def run() -> float:
            guided(**self._given(), **more)
            assert guided.report is not None  # a call leaves one
            return sum(guided.report.evaluations) / (2 * self.steps * self.batch)

        return run

    def runs(self, sides: Sequence[Side] = SIDES) -> dict[str, Callable[[], float]]:
        """A run of each side, by name."""
        return {side.name: self.guided(side) for side in sides}
