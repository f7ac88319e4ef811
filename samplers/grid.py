"""Where a sampler evaluates the network: the level of every entry of a scheduler's timesteps."""

from __future__ import annotations

from dataclasses import dataclass

from ..guidance.errors import UnsupportedSchedulerError
from ..guidance.prediction import Level

ROUNDING = 2.0**-8
"""Pipelines in bfloat16 hand their denoiser timesteps that are rounded to 8 bits."""


@dataclass(frozen=True)
class Point:
    """One evaluation of the network: one entry of ``scheduler.timesteps``.

    Args:
        timestep: the entry.
        step: step of the sampler it belongs to, from 0.
        evaluation: 0 for the first evaluation of a step, 1 for the second one of Heun's method and its kind.
        level: level of the sample that the scheduler is handed there, in the scheduler's own scaling of x.
        time: the timestep as a share of the training schedule, in [0, 1]; None where timesteps are something else
            (EDM).
    """

    timestep: float
    step: int
    evaluation: int
    level: Level
    time: float | None = None


@dataclass(frozen=True)
class Grid:
    """The schedule of one run.

    Args:
        points: a point for each entry of ``scheduler.timesteps``, in order.
        final: level of the sample that the last step returns.
    """

    points: tuple[Point, ...]
    final: Level

    @property
    def steps(self) -> int:
        """Steps of the sampler."""
        return self.points[-1].step + 1

    def after(self, index: int) -> Level:
        """Level of the sample that the scheduler returns at point `index`."""
        return self.points[index + 1].level if index + 1 < len(self.points) else self.final

    def reached(self, index: int) -> Level:
        """Level at the end of the step that point `index` belongs to."""
        while not self.ends_step(index):
            index += 1
        return self.after(index)

    def ends_step(self, index: int) -> bool:
        """Whether point `index` is the last evaluation of its step."""
        return index + 1 == len(self.points) or self.points[index + 1].step != self.points[index].step

    def position(self, timestep: float) -> int:
        """Index of the point where a run begins that begins at `timestep`, which is not 0 in image-to-image.

        A second evaluation often has the timestep of the step that follows (Heun's is at the end of its step). A run
        begins with a step, so of all points at `timestep` this is the first with the lowest `evaluation`.

        Raises:
            UnsupportedSchedulerError: no point is there.
        """
        away = [abs(point.timestep - timestep) for point in self.points]
        found = [index for index, distance in enumerate(away) if distance == min(away)]
        if min(away) > ROUNDING * abs(timestep):
            raise UnsupportedSchedulerError(
                f"timestep {timestep:g} is not on the scheduler's schedule {[point.timestep for point in self.points]}"
            )
        return min(found, key=lambda index: self.points[index].evaluation)
