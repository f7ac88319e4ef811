"""A scheduler's steps by themselves, for loops that are not a pipeline's."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor


def unhooked(copied: Any) -> Any:
    """A copy of a scheduler, without the methods that were replaced on the original and lead back to it."""
    for name in [name for name in vars(copied) if hasattr(type(copied), name)]:
        delattr(copied, name)
    return copied


class Stepper:
    """The steps of one run of a scheduler, for a loop that is not a pipeline's.

    Args:
        scheduler: any supported scheduler, after ``set_timesteps``.

    One of them (CogVideoX's DPM-Solver) does not remember its last prediction, and is handed it back.
    """

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler
        self.forgets = "old_pred_original_sample" in inspect.signature(scheduler.step).parameters
        self.last: tuple[Tensor | None, Any] = (None, None)

    def __call__(self, output: Tensor, timestep: Any, x: Tensor, **options: Any) -> Tensor:
        """The samples after a step.

        Args:
            output: what the network emitted at `x`.
            timestep: the entry of ``scheduler.timesteps``.
            x: the samples.
            **options: further arguments of the scheduler's ``step``.
        """
        if not self.forgets:
            stepped: Tensor = self.scheduler.step(output, timestep, x, **options, return_dict=False)[0]
            return stepped
        old, back = self.last
        stepped, predicted = self.scheduler.step(output, old, timestep, back, x, **options, return_dict=False)
        self.last = predicted, timestep
        return stepped
