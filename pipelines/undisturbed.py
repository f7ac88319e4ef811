"""Checks that nothing else changes the scheduler or the pipeline's own guidance in the middle of a guided call."""

from __future__ import annotations

import math
from typing import Any

from ..guidance.errors import GuidanceNotAppliedError
from ..guidance.rule import Stack
from ..samplers import Grid
from .families.record import Family, Pipeline


class Undisturbed:
    """Detects changes by other code of what a guided call depends on.

    Args:
        pipe: the pipeline.
        family: its record.
        stack: the stack, for messages.
    """

    def __init__(self, pipe: Pipeline, family: Family, stack: Stack) -> None:
        self.pipe, self.family, self.stack, self.scheduler = pipe, family, stack, pipe.scheduler
        self._left: tuple[Any, ...] | None = None
        self._guiding: dict[str, Any] | None = None

    def left(self) -> None:
        """Store the scheduler's position after a step of this call."""
        self._left = self._standing()

    def _standing(self) -> tuple[Any, ...]:
        """Return the scheduler's schedule and its step counters."""
        return self.scheduler.timesteps, *(getattr(self.scheduler, name, None) for name in ("_step_index", "counter"))

    def check(self, schedule: Grid | None, position: int, began: int) -> None:
        """Refuse to go on after a change.

        Args:
            schedule: the schedule of the call; None before its first evaluation.
            position: index of the schedule's next point.
            began: number of the first step.

        Raises:
            GuidanceNotAppliedError: the scheduler was replaced or used, or the pipeline's own guidance was changed.
        """
        name, now = type(self.pipe).__name__, self._standing()
        if self.pipe.scheduler is not self.scheduler:
            raise GuidanceNotAppliedError(
                f"the scheduler of {name} was replaced in the middle of a guided call; replace it between two calls"
            )
        if self._left is not None and (self._left[0] is not now[0] or self._left[1:] != now[1:]):
            raise GuidanceNotAppliedError(
                f"the scheduler of {name} was used by somebody else in the middle of a guided call; give every "
                "pipeline a scheduler of its own, scheduler.from_config(scheduler.config)"
            )
        self._left = now
        if self._guiding is None:
            embedded = f"_{self.family.embedded(self.pipe)}"  # a number that the network was handed at the start
            names = [one for one in self.family.scratch if one[1:] in self.family.owned and one != embedded]
            self._guiding = {one: getattr(self.pipe, one, None) for one in names}
            return
        for one, value in self._guiding.items():
            if (changed := getattr(self.pipe, one, None)) != value:
                assert schedule is not None  # what changed was there at an evaluation before
                step = schedule.points[position].step
                raise GuidanceNotAppliedError(self._changed(one, changed, step, schedule.steps, step - began))

    def _changed(self, name: str, value: Any, step: int, steps: int, guided: int) -> str:
        """Return the advice for a change of the pipeline's own guidance: the stack that does the same."""
        share = math.floor(1000 * step / steps) / 1000
        return (
            f"{name} of {type(self.pipe).__name__} was set to {value!r} in the middle of a guided call, before step "
            f"{step} of {steps}, as by a callback, and what guides is {self.stack}; leave that out and put it into the "
            f"stack: prefix({self.stack}, {guided}) to guide no longer, "
            f"during({self.stack}, progress=(0, {share:g})) | during(OTHER, progress=({share:g}, 1)) to guide otherwise"
        )
