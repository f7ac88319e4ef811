"""What a method is in a run: cells that differ in how hard they are to guide, and in steps, and in nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...guidance.errors import InputError
from ..metrics import Metric, SetMetric
from ..metrics.recorded import EffectiveScale, Evaluations
from ..spec.sweep import HOLE
from ..statistics import FEWEST
from .matched import Curve, Floats, Ints, Method, Replicates
from .measure import Cells, mean

SCALE = re.compile(r"(?<=\()(-?\d+(?:\.\d+)?(?:e[+-]?\d+)?)(?=[,)])")
"""A rule's first argument where that is a number; of a stack's text the first one is what it is swept over."""
NUMBER = re.compile(r"-?\d+(\.\d+)?(e[+-]?\d+)?")
BESIDE = ("sampler", "size", "dtype")
PLACEHOLDER = "w"


@dataclass(frozen=True)
class MethodCells:
    """The cells of a method.

    Args:
        name: of the method.
        cells: by number of steps, in the order in which they are swept.
        values: what each cell's scale was written as, by cell.
    """

    name: str
    cells: Mapping[int, tuple[str, ...]]
    values: Mapping[str, str]

    def called(self, steps: int) -> str:
        """The name of the curve of so many steps."""
        return f"{self.name}, {steps} steps" if len(self.cells) > 1 else self.name


def method_cells(told: Mapping[str, Any], templates: Mapping[str, str], known: Iterable[str]) -> list[MethodCells]:
    """The methods of a run, in the order of its sweep.

    The swept axis of a template is the one that fills its first hole. A template without a hole is a stack's text, and
    is swept over the first number of that: ``cfg(2)`` and ``cfg(4)`` are ``cfg(w)``. Other axes that a template uses,
    the sampler, the size and the type make methods of their own; the number of steps makes curves of one method.

    Args:
        told: as `RunFolder.cells` returns it.
        templates: of the sweep, by name.
        known: the cells that there are samples of.
    """
    known = set(known)
    cells = [cell for cell in told["cells"] if cell["cell"] in known]
    several = [key for key in BESIDE if len({str(cell[key]) for cell in cells}) > 1]
    found: dict[tuple[str, ...], tuple[str, dict[int, list[str]], dict[str, str]]] = {}
    for cell in cells:
        name, value = _named(cell, templates.get(cell["template"], cell["stack"]))
        beside = [setting(key, cell[key]) or "the model's size" for key in several]
        whole = ", ".join([name, *beside])
        _, by_steps, values = found.setdefault((name, *beside), (whole, {}, {}))
        by_steps.setdefault(cell["steps"], []).append(cell["cell"])
        values[cell["cell"]] = value
    return [
        MethodCells(name, {steps: _ordered(each, values) for steps, each in by_steps.items()}, values)
        for name, by_steps, values in found.values()
    ]


def setting(key: str, value: Any) -> str:
    """One of a cell's settings beside its stack, in words; "" for the model's own size."""
    if key == "size":
        return "{}x{}".format(*value) if value else ""
    return f"{value} steps" if key == "steps" else str(value)


def _named(cell: Mapping[str, Any], template: str) -> tuple[str, str]:
    """The name of a cell's method, and the value of what is swept ("" if nothing is)."""
    named = cell["template"] != template
    holes = list(dict.fromkeys(HOLE.findall(template)))
    if not holes:
        text = cell["template"] if named else cell["stack"]
        match = SCALE.search(text)
        if not match:
            return text, ""
        return text[: match.start()] + PLACEHOLDER + text[match.end() :], match[1]
    swept, axes = holes[0], cell["axes"]
    if named:
        others = [f"{hole}={axes[hole]}" for hole in holes[1:]]
        return ", ".join([cell["template"], *others]), str(axes[swept])
    return HOLE.sub(lambda hole: hole[1] if hole[1] == swept else str(axes[hole[1]]), template), str(axes[swept])


def _ordered(cells: Sequence[str], values: Mapping[str, str]) -> tuple[str, ...]:
    if all(NUMBER.fullmatch(values[cell]) for cell in cells):
        return tuple(sorted(cells, key=lambda cell: float(values[cell])))
    return tuple(cells)


class Matched:
    """A run's methods over effective scale, metric by metric.

    Args:
        cells: of the run.
        methods: the cells of each method.

    Attributes:
        prompts: those that every cell has; nothing else is compared.
        unsure: what cannot be compared, and why, in a line each.
    """

    def __init__(self, cells: Cells, methods: Sequence[MethodCells]) -> None:
        self.cells, self.unsure = cells, []  # type: tuple[Cells, list[str]]
        common = [set(cell.prompts.tolist()) for cell in cells.by_name.values()]
        self.prompts = sorted(set.intersection(*common)) if common else []
        place = {prompt: index for index, prompt in enumerate(self.prompts)}
        self._places = {
            name: np.array([place.get(prompt, -1) for prompt in cell.prompts.tolist()])
            for name, cell in cells.by_name.items()
        }
        self._replicates = {
            kind: (Replicates.jackknife if kind else Replicates.bootstrap)(len(self.prompts)) for kind in (False, True)
        }
        self.groups = []
        for group in methods:
            scales = [cells.by_name[name].numbers("effective_scale") for each in group.cells.values() for name in each]
            if any(np.isnan(scale).all() for scale in scales):
                self.unsure.append(f"{group.name} has no effective scale: no rule leads it away from anything")
            else:
                self.groups.append(group)

    def replicates(self, metric: Metric) -> Replicates:
        """The draws of prompts that intervals of a metric are made from."""
        return self._replicates[isinstance(metric, SetMetric)]

    def methods(self, metric: Metric) -> list[Method]:
        """The methods as curves of a metric.

        Raises:
            InputError: the metric has no value of a cell.
        """
        found = []
        for group in self.groups:
            parts = [cells for _, cells in self.parts(group, metric)]
            curves = (
                Curve(
                    self._columns(EffectiveScale(), cells, metric),
                    self._columns(metric, cells, metric),
                    self._columns(Evaluations(), cells, metric),
                    cells,
                )
                for cells in parts
            )
            if parts:
                found.append(Method(group.name, tuple(curves)))
        return found

    def parts(self, group: MethodCells, metric: Metric) -> list[tuple[int, tuple[str, ...]]]:
        """The cells of each curve of a method, with its number of steps.

        A curve ends where the baseline is left out, and another one begins behind it: between the two the metric rises
        to what equal images have, and a straight line across would not.
        """
        baseline, found = self.cells.left_out(metric), []
        for steps, cells in group.cells.items():
            place = cells.index(baseline) if baseline in cells else len(cells)
            found += [(steps, part) for part in (cells[:place], cells[place + 1 :]) if part]
        return found

    def _columns(self, metric: Metric, cells: Sequence[str], drawn_for: Metric) -> Floats:
        draws = self.replicates(drawn_for)
        return np.stack([self._column(metric, name, draws) for name in cells], 1)

    def _column(self, metric: Metric, name: str, replicates: Replicates) -> Floats:
        """A metric of a cell, of all common prompts and of each replicate."""
        cell, place = self.cells.by_name[name], self._places[name]
        if isinstance(metric, SetMetric):
            rows = [np.flatnonzero(place == index) for index in range(len(self.prompts))]
            statistic = cell.statistic(metric, np.arange(len(cell)))
            return np.array(
                [statistic(np.concatenate([rows[one] for one in draw])) for draw in _all(replicates, len(self.prompts))]
            )
        values = cell.values(metric, self.cells.compares(metric))
        there = (place >= 0) & ~np.isnan(values)
        sums = np.bincount(place[there], values[there], len(self.prompts))
        counts = np.bincount(place[there], minlength=len(self.prompts))
        if not counts.sum():
            raise InputError(f"the metric {metric} has no value in {self.cells.called(name)}")
        with np.errstate(invalid="ignore"):
            return np.array([sums[draw].sum() / counts[draw].sum() for draw in _all(replicates, len(self.prompts))])

    def scale(self, name: str) -> float:
        """The effective scale of a cell, mean over the common prompts."""
        return mean(self.cells.by_name[name].numbers(EffectiveScale.column)[self._places[name] >= 0])

    def range(self, group: MethodCells) -> tuple[float, float]:
        """The least and the greatest effective scale of a method's cells."""
        scales = [self.scale(name) for cells in group.cells.values() for name in cells]
        return min(scales), max(scales)

    @property
    def enough(self) -> bool:
        """Whether there are prompts enough for intervals."""
        return len(self.prompts) >= FEWEST


def _all(replicates: Replicates, prompts: int) -> list[Ints]:
    return [np.arange(prompts), *replicates.draws]
