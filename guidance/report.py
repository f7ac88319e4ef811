"""The report of a run, by step and sample: its queries, what they cost, and the traces of rules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from .notebook import MAX_STEPS, table
from .prediction import Level
from .query import Query
from .words import counted


@dataclass(frozen=True, repr=False)
class StepRecord:
    """One evaluation of the stack, or of a turn that one of its rules takes before it.

    Attributes:
        index: step of the sampler.
        evaluation: evaluation within the step, 0 for all but two-evaluation solvers.
        level: level of the samples.
        queries: each query as the network knows it, with the samples it was evaluated for.
        calls: network calls.
        rows: rows over all calls, those included that nobody asked for and the network evaluates all the same.
        traces: what rules reported, by name: one number for each sample.
        observed: what an observer of the run made of it, likewise.
        cached: the rows that a feature cache answered, in part at least.
        turn: 0 for the sampler's own evaluation, else which of the turns that rules take before it.
    """

    index: int
    evaluation: int
    level: Level
    queries: Mapping[Query, tuple[int, ...]]
    calls: int
    rows: int
    traces: Mapping[str, Tensor]
    observed: Mapping[str, Tensor] = field(default_factory=dict)
    cached: int = 0
    turn: int = 0

    def __repr__(self) -> str:
        asked = ", ".join(f"{query} for {len(samples)}" for query, samples in self.queries.items()) or "nothing"
        cost = f"calls: {self.calls}, rows: {self.rows}"
        turn = f", turn {self.turn}" if self.turn else ""
        return f"<step {self.index}{turn}: sigma/alpha {self.level.k_sigma:.4g}, {asked}; {cost}>"

    def evaluations(self, batch: int) -> list[int]:
        """Network evaluations of each sample at this step, length B."""
        counts = [0] * batch
        for samples in self.queries.values():
            for sample in samples:
                counts[sample] += 1
        return counts


@dataclass(repr=False)
class Report:
    """What one run evaluated: queries, network calls and rows of each step, and the traces of rules.

    The field uses "NFE" for steps, for evaluations of a sample and for network calls; here each has its own number.
    ``str`` of a report is a line; a notebook shows a table of its steps.

    Attributes:
        stack: the stack's text.
        batch: samples B.
        steps: a record for each evaluation of the stack, in order.
    """

    stack: str
    batch: int
    steps: list[StepRecord] = field(default_factory=list)

    @property
    def evaluations(self) -> list[int]:
        """Network evaluations of each sample over the run, length B."""
        totals = [0] * self.batch
        for record in self.steps:
            totals = [total + more for total, more in zip(totals, record.evaluations(self.batch), strict=True)]
        return totals

    @property
    def calls(self) -> int:
        """Network calls over the run."""
        return sum(record.calls for record in self.steps)

    @property
    def rows(self) -> int:
        """Rows over all network calls: the evaluations of all samples together."""
        return sum(record.rows for record in self.steps)

    @property
    def cached(self) -> int:
        """How many of `rows` a feature cache answered at least in part; the others were computed fully."""
        return sum(record.cached for record in self.steps)

    def trace(self, name: str) -> list[list[float]]:
        """Return a rule's trace as numbers: a list for each record that has it, with a number for each sample.

        Waits for the device that holds them.
        """
        return [record.traces[name].tolist() for record in self.steps if name in record.traces]

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self}>"

    def _repr_html_(self) -> str:
        """A table of the steps, for notebooks. Traces are means over samples; waits for their device."""
        names = list(dict.fromkeys(name for record in self.steps for name in record.traces))
        heads = ("step", "sigma/alpha", "evaluated for so many samples", "calls", "rows", *names)
        rows = []
        for record in self.steps[:MAX_STEPS]:
            asked = ", ".join(f"{query}: {len(samples)}" for query, samples in record.queries.items()) or "nothing"
            place = f"{record.index}{f' ({record.evaluation + 1})' if record.evaluation else ''}"
            place += f", turn {record.turn}" if record.turn else ""
            traces = [f"{record.traces[name].float().nanmean():.4g}" if name in record.traces else "" for name in names]
            rows.append((place, f"{record.level.k_sigma:.4g}", asked, str(record.calls), str(record.rows), *traces))
        more = f"and {len(self.steps) - MAX_STEPS} more" if len(self.steps) > MAX_STEPS else ""
        return table(str(self), heads, rows, more)

    def __str__(self) -> str:
        evaluations = self.evaluations
        low, high = min(evaluations, default=0), max(evaluations, default=0)
        each = f"{low}" if low == high else f"{low} to {high}"
        steps = len({record.index for record in self.steps})
        return (
            f"{self.stack}: {counted(self.batch, 'sample')}, {counted(steps, 'step')}, "
            f"{each} evaluation{'s' * (each != '1')} a sample, "
            f"{counted(self.calls, 'network call')}, {counted(self.rows, 'row')}"
        ) + (f", {self.cached} of them from a feature cache" if self.cached else "")
