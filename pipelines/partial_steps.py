"""The position of a guided call that runs a part of its schedule: its last steps, or all of them backwards."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from ..guidance.errors import GuidanceNotAppliedError, InputError, UnsupportedPipelineError
from ..guidance.rule import Stack
from ..samplers.inversion import placed, size, undone
from ..samplers.levels import grid
from .families.record import Call, Family, Pipeline
from .hooks import Mine, Watch
from .steps import Steps


class PartialSteps(Steps):
    """Where a call stands that runs the last part of its schedule.

    Args:
        pipe: the pipeline.
        family: its record.
        stack: the stack.
        call: the arguments that the pipeline is called with.
        strength: share of the steps to run.

    Attributes:
        unit: what the pipeline multiplies latents by that it is given.
        first: steps of the schedule that are left out.
    """

    def __init__(self, pipe: Pipeline, family: Family, stack: Stack, call: Call, strength: float) -> None:
        super().__init__(pipe, family, stack, call)
        self.strength, self.unit, self.first, self.begun = strength, 1.0, 0, False
        self.whole: Tensor | None = None

    @property
    def watched(self) -> Mapping[str, tuple[Watch, Mine]]:
        """The hooks of all steps, and one where the schedule is made, which pipelines leave to a module's function."""
        mine = self._is_at_the_start
        return {
            **super().watched,
            "set_timesteps": (self.watch_schedule, mine),
            "set_begin_index": (self.watch_begin, mine),
        }

    def _is_at_the_start(self, frame: FrameType) -> bool:
        return not self.begun and self.caller.within(frame)

    def watch_schedule(self, set_timesteps: Callable[..., None]) -> Callable[..., None]:
        """Let the pipeline find only what it is to run, once the scheduler has made all of it."""

        def part(*args: Any, **kwargs: Any) -> None:
            set_timesteps(*args, **kwargs)
            scheduler = self.pipe.scheduler
            self.schedule, self.whole = grid(scheduler), scheduler.timesteps
            steps = len(self.whole)
            self.first = steps - int(steps * self.strength)
            if self.first == steps:
                raise InputError(f"strength={self.strength:g} of {steps} steps is none; give at least {1 / steps:g}")
            self.unit = float(getattr(scheduler, "init_noise_sigma", 1.0))
            scheduler.timesteps = self._taken(self.whole[self.first :])
            if self.first and hasattr(scheduler, "set_begin_index"):
                scheduler.set_begin_index(0)

        return part

    def watch_begin(self, set_begin_index: Callable[[int], None]) -> Callable[[int], None]:
        """Count from the whole schedule, in which the scheduler looks up its levels."""

        def begin(begin_index: int = 0) -> None:
            set_begin_index(begin_index + self.first)

        return begin

    def _taken(self, timesteps: Tensor) -> Tensor:
        return timesteps

    def _entry(self, arguments: Mapping[str, Any]) -> int:
        self.begun = True
        return self.first

    def release(self) -> None:
        """Give the scheduler its whole schedule back."""
        if self.whole is not None:
            self.pipe.scheduler.timesteps = self.whole


class BackwardSteps(PartialSteps):
    """Where a call stands that runs its schedule backwards, from data to noise.

    Attributes:
        reached: the samples after the last step, in the scheduler's scaling; None before the first.
    """

    reached: Tensor | None = None

    def _taken(self, timesteps: Tensor) -> Tensor:
        # The pipeline multiplies what it is given as if it were noise.
        self.call["latents"].div_(self.unit)
        return timesteps.flip(0)

    def _entry(self, arguments: Mapping[str, Any]) -> int:
        self.begun = True
        return self._place

    @property
    def _place(self) -> int:
        return len(self.grid.points) - 1 - self.stepped

    def watch_input(self, scale: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Hand the network x, scaled as it expects samples at the level that it is given."""

        def scale_model_input(sample: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            level, noisier = self.grid.after(self._place), self.grid.points[self._place].level
            self.x = placed(sample, level, noisier, self.emitted)
            return sample / size(level, self.emitted)

        return scale_model_input

    def watch_step(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """Undo a step instead of taking it."""
        names = list(inspect.signature(step).parameters)

        def undo(*args: Any, **kwargs: Any) -> Any:
            assert self.estimate is not None  # the denoiser was called before
            self.check()
            given = dict(zip(names, args, strict=False)) | kwargs
            sample, batch = given["sample"], len(self.estimate.prediction.native)
            if sample.shape[1:] != self.estimate.prediction.native.shape[1:]:
                raise UnsupportedPipelineError(
                    f"{type(self.pipe).__name__} hands its scheduler samples {tuple(sample.shape[1:])}, its network "
                    f"{tuple(self.estimate.prediction.native.shape[1:])}: it cannot be run backwards"
                )
            self.reached = undone(self.estimate, sample[:batch], self.grid.after(self.position)).to(sample.dtype)
            self.stepped += 1
            self.position = self._place
            self.undisturbed.left()
            return _returned(torch.cat([self.reached] * (len(sample) // batch)), given.get("return_dict", True))

        return undo

    def finish(self) -> None:
        """Check that all steps were made.

        Raises:
            GuidanceNotAppliedError: the pipeline stopped before.
        """
        if self.schedule is None or self.stepped < len(self.schedule.points) - self.first:
            raise GuidanceNotAppliedError(
                f"{type(self.pipe).__name__} stopped after {self.stepped} steps of an inversion; was it interrupted?"
            )


def _returned(sample: Tensor, as_object: bool) -> Any:
    """What a scheduler's step returns."""
    from diffusers.schedulers.scheduling_utils import SchedulerOutput

    return SchedulerOutput(prev_sample=sample) if as_object else (sample,)
