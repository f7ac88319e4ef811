"""The grid of a run: the noise level of every evaluation, from the entries of a scheduler's timesteps."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..guidance.plan import SchedulePoint
from ..guidance.prediction import Level


@dataclass(frozen=True)
class Point(SchedulePoint):
    """One evaluation of the network, a `SchedulePoint`: one entry of ``scheduler.timesteps``.

    Its level is that of the sample that the scheduler is handed there, in the scheduler's own scaling of x.

    Args:
        timestep: the entry.
        returned: level of the sample that the scheduler returns there. It need not be the `level` of the next point:
            DDIM steps by T // n timesteps whatever the spacing of the entries.
    """

    timestep: float = field(kw_only=True)
    returned: Level = field(kw_only=True)


@dataclass(frozen=True)
class Grid:
    """The schedule of one run: its points, each an evaluation, and the level that each step leads to.

    Args:
        points: a point for each entry of ``scheduler.timesteps``, in order.
    """

    points: tuple[Point, ...]

    @property
    def steps(self) -> int:
        """The number of the sampler's steps."""
        return self.points[-1].step + 1

    @property
    def final(self) -> Level:
        """The level of the sample that the last step returns."""
        return self.points[-1].returned

    @property
    def levels(self) -> tuple[Level, ...]:
        """The level at the beginning of each step, followed by the level at the end of the last."""
        begins = {point.step: point.level for point in reversed(self.points)}
        return (*(begins[step] for step in sorted(begins)), self.final)

    def after(self, index: int) -> Level:
        """Return the level of the sample that the scheduler returns at point `index`."""
        return self.points[index].returned

    def reached(self, index: int) -> Level:
        """Return the level at the end of the step that point `index` belongs to."""
        while not self.ends_step(index):
            index += 1
        return self.after(index)

    def ends_step(self, index: int) -> bool:
        """Return whether point `index` is the last evaluation of its step."""
        return index + 1 == len(self.points) or self.points[index + 1].step != self.points[index].step
