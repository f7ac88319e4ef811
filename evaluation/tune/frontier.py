"""The measured trade between cost and likeness: points, and which of them no other beats in both."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import statistics as intervals
from ..csvs import written_csv

Values = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Point:
    """The measurements of one stack.

    Args:
        stack: its text.
        steps: of the sampler.
        evaluations: network evaluations of each sample.
        likeness: of each sample by metric, as `parse_metric` reads it, in one order of samples.
        prompts: the place of each sample's prompt.
    """

    stack: str
    steps: int
    evaluations: Values
    likeness: Mapping[str, Values]
    prompts: NDArray[np.int64] = field(repr=False)

    @property
    def cost(self) -> float:
        """Mean network evaluations of a sample."""
        return float(self.evaluations.mean())

    def mean(self, metric: str) -> float:
        """Mean likeness by a metric."""
        return float(self.likeness[metric].mean())

    def interval(self, metric: str) -> tuple[float, float]:
        """The bootstrap's interval of that mean, with prompts as units."""
        return intervals.bootstrap(self.likeness[metric], self.prompts)

    def difference(self, other: Point, metric: str) -> tuple[float, float, float]:
        """Mean of the likeness less that of `other` over the same samples, and its interval."""
        away = self.likeness[metric] - other.likeness[metric]
        return float(away.mean()), *intervals.bootstrap(away, self.prompts)

    def row(self) -> dict[str, Any]:
        """The stack and its numbers, as a row of frontier.csv and frontier.json."""
        found: dict[str, Any] = {"stack": self.stack, "steps": self.steps, "evaluations": self.cost}
        for metric in self.likeness:
            low, high = self.interval(metric)
            found |= {metric: self.mean(metric), f"{metric}_low": low, f"{metric}_high": high}
        return found | {"samples": len(self.evaluations), "prompts": len(np.unique(self.prompts))}


def pareto(points: Iterable[Point], metric: str, sign: int) -> list[Point]:
    """The points that no other beats in cost and in likeness, by cost; of equal ones the first.

    Args:
        points: measured on the same samples.
        metric: the likeness.
        sign: 1 where more is more alike, -1 where less is.
    """
    return intervals.undominated(points, lambda point: (-point.cost, sign * point.mean(metric)))


def told(about: Mapping[str, Any], groups: Mapping[str, Sequence[Point]]) -> dict[str, Any]:
    """Points by group as plain numbers, with what they are of."""
    return {**about, **{name: [point.row() for point in points] for name, points in groups.items()}}


def as_json(whole: Mapping[str, Any]) -> bytes:
    """The contents of frontier.json, from what `told` returns."""
    return json.dumps(whole, indent=1, ensure_ascii=False).encode() + b"\n"


def as_csv(groups: Mapping[str, Sequence[Point]]) -> bytes:
    """Points as a table, with a column for the group."""
    rows = [{"group": name, **point.row()} for name, points in groups.items() for point in points]
    return written_csv([list(rows[0]) if rows else ["group"], *(list(row.values()) for row in rows)])
