"""The lines of a result, for people and as JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .timing import Timing


@dataclass(frozen=True)
class Row:
    """One line of the result.

    Args:
        what: ``"pipeline"``, or ``"arithmetic over"`` and the guider's name.
        name: the rule.
        stack: its text.
        batch: images.
        timing: seconds, and their ratio to the reference's.
        evaluations: evaluations over the reference's; None where the network is left out.
        figure: the number that `limit` is of.
        limit: what it is not to exceed, or None.
    """

    what: str
    name: str
    stack: str
    batch: int
    timing: Timing
    evaluations: float | None
    figure: float
    limit: float | None

    def mapping(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        plain = {name: getattr(self, name) for name in ("what", "name", "stack", "batch", "evaluations")}
        spreads = {name: vars(getattr(self.timing, name)) for name in ("seconds", "ratio")}
        return {**plain, **spreads, "figure": self.figure, "limit": self.limit}

    def line(self) -> str:
        """For the table."""
        cells = [f"{self.name:<22}", f"{1000 * self.timing.seconds.median:9.2f} ms", f"{self.timing.ratio!s:>24}"]
        if self.evaluations is not None:
            cells += [f"{self.evaluations:6.3f}", f"{self.timing.ratio.median / self.evaluations:6.3f}"]
        verdict = "" if self.limit is None else f"{self.figure:.3f} <= {self.limit:.2f}"
        if self.limit is not None and self.figure > self.limit:
            verdict += "  exceeded"
        return "  ".join([*cells, verdict]).rstrip()
