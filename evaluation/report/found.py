"""What a report shows, as `gather` finds it and the page writes it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from ..analysis.measure import Cells, Number
from ..analysis.methods import MethodCells, setting
from ..metrics import Metric, PairMetric, summary
from ..spec.claim import Claim
from ..verdicts import Finding
from .plot import Plot
from .words import ComparisonRow, Kind, number, small

BESIDE = ("sampler", "steps", "size", "dtype")


@dataclass(frozen=True, eq=False)
class Column:
    """A metric, with its numbers by cell; all of them have one full name.

    Args:
        metric: the metric.
        name: the full name.
        numbers: by cell.
    """

    metric: Metric
    name: str
    numbers: dict[str, Number]

    @property
    def text(self) -> str:
        """What `parse_metric` reads."""
        return str(self.metric)

    @property
    def better(self) -> str:
        """Which direction is better: ``"up"``, ``"down"`` or ``"none"``."""
        return self.metric.better

    @property
    def arrow(self) -> str:
        """The better direction as a sign; "" where neither is better."""
        return {"up": "↑", "down": "↓"}.get(self.better, "")

    @property
    def said(self) -> str:
        """The better direction in words; "" where neither is better."""
        return {"up": "higher is better", "down": "lower is better"}.get(self.better, "")

    @property
    def what(self) -> str:
        """What the metric is, in a sentence."""
        return summary(self.metric.name).replace("`", "")

    @property
    def pairs(self) -> bool:
        """Whether the metric compares each image with the baseline's."""
        return isinstance(self.metric, PairMetric)

    @property
    def axis(self) -> str:
        """The label of an axis of this metric."""
        return f"{self.text} ({self.said})" if self.said else self.text

    def of(self, cell: str) -> Number | None:
        """The number of a cell; None where it has no value."""
        one = self.numbers.get(cell)
        return None if one is None or math.isnan(one.value) else one

    def told(self, cell: str) -> str:
        """The value of a cell with its interval, after the metric's text."""
        one = self.of(cell)
        if one is None:
            return f"{self.text} no value"
        interval = "" if math.isnan(one.low) else f" [{number(one.low)}, {number(one.high)}]"
        return f"{self.text} {number(one.value)}{interval}"

    def written(self, cell: str) -> tuple[str, str]:
        """The value of a cell and the ends of its interval, as a table has them."""
        one = self.of(cell)
        if one is None:
            return "–", ""
        ends = [small(end) if self.text == "across" else end for end in (one.value, one.low, one.high)]
        value, low, high = map(number, ends)
        return value, "" if math.isnan(one.low) else f"{low} – {high}"


@dataclass
class Found:
    """The contents of a report.

    Args:
        cells: of the run.
        groups: the methods.
        columns: the metrics' numbers.
        prompts: how many there are that comparisons are of.
        verdicts: of pairs of methods over effective scale.
        by_cost: of pairs over evaluations, at one effective scale each.
        plots: of metrics.
        differences: plots of comparisons, by the name that their verdicts have.
        apart: of methods that no metric can compare, and what to do about it, a line for each pair.
        claim: what a paper says of these cells, and what the run says of it; None if the sweep has none.
        notes: on the numbers and comparisons.
    """

    cells: Cells
    groups: list[MethodCells]
    columns: list[Column] = field(default_factory=list)
    prompts: int = 0
    verdicts: list[ComparisonRow] = field(default_factory=list)
    by_cost: list[tuple[float, ComparisonRow]] = field(default_factory=list)
    plots: list[Plot] = field(default_factory=list)
    differences: dict[str, Plot] = field(default_factory=dict)
    apart: dict[tuple[str, str], str] = field(default_factory=dict)
    claim: tuple[Claim, Sequence[Finding]] | None = None
    notes: list[str] = field(default_factory=list)

    @cached_property
    def _settings(self) -> dict[str, dict[str, str]]:
        """The settings beside the stack, each by cell."""
        by_name = self.cells.by_name.items()
        return {key: {name: setting(key, cell.told[key]) for name, cell in by_name} for key in BESIDE}

    def short(self, name: str) -> str:
        """What a cell is, as far as cells differ: its stack, sampler, steps, size and type."""
        differing = [by[name] or "the model's size" for by in self._settings.values() if len(set(by.values())) > 1]
        return ", ".join([str(self.cells.by_name[name].told["stack"]), *differing])

    @property
    def same(self) -> str:
        """The settings that all cells have in common."""
        common = [next(iter(by.values())) for by in self._settings.values() if len(set(by.values())) == 1]
        return ", ".join(filter(None, common))

    def said(self, cell: str, *parts: str) -> str:
        """A tooltip for the mark of a cell."""
        return "\n".join([self.short(cell), *parts])

    def left_out(self, column: Column, cell: str) -> bool:
        """Whether a cell is the baseline, which a metric of pairs would compare with itself."""
        return cell == self.cells.left_out(column.metric)

    @property
    def places(self) -> dict[str, int]:
        """The places of the methods, by name: their colours."""
        return {group.name: place for place, group in enumerate(self.groups)}

    @property
    def by_metric(self) -> list[tuple[Column, list[ComparisonRow]]]:
        """The metrics with their verdicts, but for the pairs of methods that no metric can compare."""
        rows = [row for row in self.verdicts if (row.one, row.other) not in self.apart]
        groups = [(column, [row for row in rows if row.metric == column.text]) for column in self.columns]
        return [(column, own) for column, own in groups if own]

    @property
    def unplotted(self) -> int:
        """Comparisons without a plot, as there are too many."""
        rows = [*self.verdicts, *(row for _, row in self.by_cost)]
        return sum(row.kind != Kind.APART and not row.plot for row in rows)
