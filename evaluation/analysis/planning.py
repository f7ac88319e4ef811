"""How many prompts each row of a claim needs, from a pilot: a run of the same sweep on its first prompts."""

from __future__ import annotations

from dataclasses import dataclass

from ...guidance.errors import InputError
from ...guidance.words import counted
from ..spec.sweep import Sweep
from ..store.folder import RunFolder
from ..verdicts import POWER, Finding
from .findings import findings
from .measure import Cells


@dataclass(frozen=True)
class ClaimPlan:
    """What a claim needs.

    Args:
        rows: in the order of the claim, as the pilot found them.
        pilot: prompts of the pilot.
        given: prompts of the sweep.
        seconds: that a prompt takes in all cells, as measured in the pilot, by one process.
        power: with which each row is decided.
    """

    rows: tuple[Finding, ...]
    pilot: int
    given: int
    seconds: float
    power: float

    @property
    def prompts(self) -> int:
        """What the row needs that needs most."""
        return max(row.wanted(self.power) for row in self.rows)

    def hours(self, prompts: int) -> float:
        """What so many prompts take, in hours of one process as the pilot was."""
        return prompts * self.seconds / 3600

    def _row(self, row: Finding) -> str:
        prompts = row.wanted(self.power)
        needs = counted(prompts, "prompt") if prompts else "unknown: the pilot is too small"
        return f"{row.expected}: matters from {row.matters:g}, deviation of a prompt {row.spread:.3g}: {needs}"

    def __str__(self) -> str:
        each = f"{self.seconds:.3g} s a prompt"
        return "\n".join(
            [
                f"from {counted(self.pilot, 'prompt')}, for a power of {self.power:.0%} at 95%; {each} in all cells:",
                *(f"  {self._row(row)}" for row in self.rows),
                f"all rows: {counted(self.prompts, 'prompt')}, {self.hours(self.prompts):.2f} h; "
                f"the sweep has {self.given}, {self.hours(self.given):.2f} h",
            ]
        )


def plan(sweep: Sweep, pilot: RunFolder, power: float = POWER) -> ClaimPlan:
    """Count the prompts that each row of a sweep's claim needs. Nothing is made.

    The deviation of a prompt's difference is that of the pilot, as the interval of its rows knows it: some dozens of
    prompts tell it to about a third. Of a metric of a set, whose deviation changes with the size, it is a guess.

    Args:
        sweep: with a claim.
        pilot: a run of it, or of its first prompts.
        power: in (0, 1).

    Raises:
        InputError: the sweep has no claim, or the pilot lacks samples of a cell.
    """
    if sweep.claim is None:
        raise InputError("this sweep has no claim, whose rows could be planned")
    cells = Cells(pilot)
    found = findings(pilot, sweep.claim, cells)
    seconds = sum(float(cell.numbers("seconds").mean()) * sweep.seeds.count for cell in cells.by_name.values())
    prompts = {int(one) for cell in cells.by_name.values() for one in cell.prompts}
    return ClaimPlan(tuple(found), len(prompts), len(sweep.prompts), seconds, power)
