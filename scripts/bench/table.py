"""The lines of a result, for people and as JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .timing import Timing

ENOUGH = 3
"""Rounds below which nothing is said of a time."""
MEMORY = 1.02
"""What the memory of a rule with two conditions is not to exceed, over that of the stock pipeline."""


@dataclass(frozen=True)
class Row:
    """One stack's step without the network.

    Args:
        what: ``"arithmetic over"`` and the guider's name.
        name: the rule.
        stack: its text.
        batch: images.
        timing: seconds, and their ratio to the reference's.
        limit: what the ratio is not to exceed.
    """

    what: str
    name: str
    stack: str
    batch: int
    timing: Timing
    limit: float

    def mapping(self) -> dict[str, Any]:
        """The row as plain values, for JSON."""
        plain = {name: getattr(self, name) for name in ("what", "name", "stack", "batch")}
        spreads = {name: vars(getattr(self.timing, name)) for name in ("seconds", "ratio")}
        return {**plain, **spreads, "limit": self.limit}

    def line(self) -> str:
        """The row of the printed table."""
        figure = self.timing.ratio.median
        verdict = f"{figure:.3f} <= {self.limit:.2f}" + ("  exceeded" if figure > self.limit else "")
        cells = [f"{self.name:<22}", f"{1000 * self.timing.seconds.median:9.2f} ms", f"{self.timing.ratio!s:>24}"]
        return "  ".join([*cells, verdict])


Measured = dict[str, Any]
"""One stack on one model at one batch size: plain values, as they stand in the JSON."""
HEAD = (
    f"{'rule':<22}  {'time over stock':>24}  {'evals':>6}  {'effic.':>6}  {'memory':>6}  {'added/step':>10}  "
    f"{'guider':>6}  {'modular':>7}"
)


def line(row: Measured, steps: int | None = None) -> str:
    """One row of the table, with what it falls short of, and its steps where they are not those of the head."""

    def optional(name: str) -> str:
        return "" if row[name] is None else f"{row[name]:.3f}"

    notes = [f"{row['steps']} steps"] if steps not in (None, row["steps"]) else []
    if row["rounds"] < ENOUGH:
        notes.append(f"{row['rounds']} round{'s' * (row['rounds'] > 1)}, too few for a verdict")
    spread = f"{row['time_ratio']:.3f} ({row['time_low']:.3f} to {row['time_high']:.3f})"
    return (
        f"{row['name']:<22}  {spread:>24}  {row['evaluation_ratio']:6.3f}  {row['efficiency']:6.3f}  "
        f"{row['memory_ratio']:6.3f}  {row['added_ms']:7.3f} ms  {optional('guider_ratio'):>6}  "
        f"{optional('modular_ratio'):>7}  {'; '.join([*short(row), *notes])}"
    ).rstrip()


def short(row: Measured) -> list[str]:
    """The limits that a row falls short of, in words."""
    found = []
    if row["rounds"] >= ENOUGH and row["efficiency"] < row["efficiency_limit"]:
        found.append(f"efficiency below {row['efficiency_limit']:.2f}")
    if row["evaluation_ratio"] <= 1 and row["memory_ratio"] > MEMORY:
        found.append(f"memory above {MEMORY:.2f}")
    return found
