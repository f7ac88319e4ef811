"""What a sweep will cost, before it runs."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from dataclasses import dataclass

from ...guidance.words import counted
from ..spec.cells import Cell
from .batches import Batch, Plan, Sample
from .check import Cost, kinds
from .runner import Prepared

STEPS = (2, 4)  # of the two runs whose difference is what an evaluation takes
UNGUIDED = "stack()"  # what is timed: every model runs it, and an evaluation is an evaluation

Kind = tuple[str, tuple[int, int] | None]
"""Weight type and size: what an evaluation's time depends on."""


@dataclass(frozen=True)
class Line:
    """One cell.

    Args:
        cell: the cell.
        images: its samples.
        missing: those that do not exist.
        evaluations: of all its samples.
        cost: of one.
    """

    cell: Cell
    images: int
    missing: int
    evaluations: int
    cost: Cost

    @property
    def each(self) -> str:
        """Evaluations of a sample, as text."""
        found = sorted(set(self.cost.evaluations.values()))
        text = str(found[0]) if len(found) == 1 else f"{found[0]} to {found[-1]}"
        return f"at most {text}" if self.cost.bound else text


@dataclass(frozen=True)
class Speed:
    """What was measured.

    Args:
        evaluation: seconds of one evaluation.
        image: seconds of an image beside its evaluations: text, decoding.
    """

    evaluation: float
    image: float


@dataclass(frozen=True)
class Estimate:
    """What a sweep will cost.

    Args:
        lines: its cells.
        missing_evaluations: of the samples that do not exist.
        seconds: they will take about.
    """

    lines: tuple[Line, ...]
    missing_evaluations: int
    seconds: float

    def __str__(self) -> str:
        width = max(len(str(line.cell)) for line in self.lines)
        head = f"{'cell':<{width}}  {'images':>8}  {'missing':>8}  evaluations an image"
        rows = [f"{line.cell!s:<{width}}  {line.images:>8}  {line.missing:>8}  {line.each}" for line in self.lines]
        images, missing = sum(line.images for line in self.lines), sum(line.missing for line in self.lines)
        total = sum(line.evaluations for line in self.lines)
        bound = "at most " if any(line.cost.bound for line in self.lines) else ""
        there = f", of which {images - missing} exist{'s' * (images - missing == 1)}" if missing < images else ""
        return "\n".join(
            [
                head,
                *rows,
                "",
                f"{counted(len(self.lines), 'cell')}, {counted(images, 'image')}{there}: {bound}"
                f"{counted(total, 'network evaluation')}",
                f"to make: {counted(missing, 'image')}, {bound}{counted(self.missing_evaluations, 'evaluation')}, "
                f"about {span(self.seconds)}",
            ]
        )


def span(seconds: float) -> str:
    """A time as people say it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def estimate(prepared: Prepared, plan: Plan, existing: set[str]) -> Estimate:
    """Count what a sweep costs and time a few steps of its model.

    Cost: eight steps of one batch, without guidance, for each weight type and size.
    """
    images, missing = _counts(plan, existing)
    lines, spent, seconds = [], 0, 0.0
    speeds: dict[Kind, Speed] = {}
    for cell in prepared.cells:
        cost = prepared.costs[cell]
        each = _mean(cost, kinds(prepared.sweep.prompts, cell))
        lines.append(Line(cell, images[cell.key], missing[cell.key], round(each * images[cell.key]), cost))
        kind = (cell.dtype, cell.size)
        if missing[cell.key] and kind not in speeds:
            speeds[kind] = measured(prepared, cell)
        if missing[cell.key]:
            spent += round(each * missing[cell.key])
            seconds += missing[cell.key] * (each * speeds[kind].evaluation + speeds[kind].image)
    return Estimate(tuple(lines), spent, seconds / max(1, prepared.options.launch.world))


def _mean(cost: Cost, prompts: Mapping[tuple[int, int], int]) -> float:
    return sum(cost.evaluations[kind] * count for kind, count in prompts.items()) / sum(prompts.values())


def _counts(plan: Plan, existing: set[str]) -> tuple[dict[object, int], dict[object, int]]:
    """By cell, its samples and those that are missing."""
    images: dict[object, int] = {}
    missing: dict[object, int] = {}
    for place in plan.places(existing):
        batch = plan.batch(place)
        images[batch.cell.key] = images.get(batch.cell.key, 0) + len(batch.samples)
        missing[batch.cell.key] = missing.get(batch.cell.key, 0) + place.missing
    return images, missing


def measured(prepared: Prepared, cell: Cell) -> Speed:
    """Time an evaluation of a cell's batch, and an image beside its evaluations."""
    prompts = list(itertools.islice(itertools.cycle(prepared.sweep.prompts), cell.batch))
    prompts = [dataclasses.replace(one, negative="", extra="") for one in prompts]

    def seconds(steps: int) -> float:
        plain = dataclasses.replace(cell, stack=UNGUIDED, steps=steps)
        samples = tuple(Sample(prompt, 0, seed, "") for seed, prompt in enumerate(prompts))
        return prepared.make(Batch(plain, samples)).seconds

    seconds(STEPS[0])  # the first run of a model pays for what later ones find in place
    few, many = (seconds(steps) for steps in STEPS)
    evaluation = max(0.0, many - few) / (STEPS[1] - STEPS[0]) / cell.batch
    return Speed(evaluation, max(0.0, few / cell.batch - STEPS[0] * evaluation))
