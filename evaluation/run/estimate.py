"""What a sweep will cost, before it runs."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from dataclasses import dataclass

from ...guidance.words import counted
from ..spec.cells import Cell
from ..values import Size
from .batches import Batch, Plan, Sample
from .check import Cost
from .runner import Prepared

STEPS = (2, 4)  # of the two runs whose difference is what an evaluation takes
UNGUIDED = "stack()"  # what is timed: every model runs it, and an evaluation is an evaluation


@dataclass(frozen=True)
class Line:
    """A cell with what its samples cost.

    Args:
        cell: the settings that the samples share.
        images: number of the cell's samples.
        missing: number of them that do not exist yet.
        cost: evaluations of one sample for each kind of prompt, and whether they are only a bound.
    """

    cell: Cell
    images: int
    missing: int
    cost: Cost

    @property
    def each(self) -> str:
        """Evaluations of a sample, as text."""
        found = sorted(set(self.cost.evaluations.values()))
        text = str(found[0]) if len(found) == 1 else f"{found[0]} to {found[-1]}"
        return f"at most {text}" if self.cost.bound else text


@dataclass(frozen=True)
class Estimate:
    """What a sweep will cost.

    Args:
        lines: one for each cell.
        seconds: about how long it takes to make the missing samples.
    """

    lines: tuple[Line, ...]
    seconds: float

    @property
    def missing_evaluations(self) -> int:
        """Network evaluations of the samples that do not exist."""
        return sum(round(line.cost.mean * line.missing) for line in self.lines)

    def __str__(self) -> str:
        width = max(len(str(line.cell)) for line in self.lines)
        images, missing = sum(line.images for line in self.lines), sum(line.missing for line in self.lines)
        total = sum(round(line.cost.mean * line.images) for line in self.lines)
        bound = "at most " if any(line.cost.bound for line in self.lines) else ""
        there = f", of which {images - missing} exist{'s' * (images - missing == 1)}" if missing < images else ""
        return "\n".join(
            [
                f"{'cell':<{width}}  {'images':>8}  {'missing':>8}  evaluations an image",
                *(f"{line.cell!s:<{width}}  {line.images:>8}  {line.missing:>8}  {line.each}" for line in self.lines),
                "",
                f"{counted(len(self.lines), 'cell')}, {counted(images, 'image')}{there}: {bound}"
                f"{counted(total, 'network evaluation')}",
                f"to make: {counted(missing, 'image')}, {bound}{counted(self.missing_evaluations, 'evaluation')}, "
                f"about {span(self.seconds)}",
            ]
        )


def span(seconds: float) -> str:
    """A time in seconds, minutes or hours."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def estimate(prepared: Prepared, plan: Plan, existing: set[str]) -> Estimate:
    """Count what a sweep costs and time a few steps of its model.

    Cost: eight steps of one batch, without guidance, for each weight type and size.
    """
    images: Counter[object] = Counter()
    missing: Counter[object] = Counter()
    for block in plan.blocks:
        images[block.cell.key] += len(block.pairs)
    for place in plan.places(existing):
        missing[plan.blocks[place.block].cell.key] += place.missing
    lines, seconds = [], 0.0
    speeds: dict[tuple[str, Size | None], tuple[float, float]] = {}
    for cell in prepared.cells:
        cost = prepared.costs[cell]
        lines.append(Line(cell, images[cell.key], missing[cell.key], cost))
        if missing[cell.key]:
            if (cell.dtype, cell.size) not in speeds:
                speeds[cell.dtype, cell.size] = _timed(prepared, cell)
            evaluation, image = speeds[cell.dtype, cell.size]
            seconds += missing[cell.key] * (cost.mean * evaluation + image)
    return Estimate(tuple(lines), seconds / max(1, prepared.options.launch.world))


def _timed(prepared: Prepared, cell: Cell) -> tuple[float, float]:
    """Seconds of an evaluation of a sample, and of an image beside its evaluations: text, decoding."""
    prompts = list(itertools.islice(itertools.cycle(prepared.sweep.prompts), cell.batch))
    prompts = [dataclasses.replace(one, negative="", extra="") for one in prompts]

    def seconds(steps: int) -> float:
        plain = dataclasses.replace(cell, stack=UNGUIDED, steps=steps)
        samples = tuple(Sample(prompt, 0, seed, "") for seed, prompt in enumerate(prompts))
        return prepared.make(Batch(plain, samples)).seconds

    seconds(STEPS[0])  # the first run of a model pays for what later ones find in place
    few, many = (seconds(steps) for steps in STEPS)
    evaluation = max(0.0, many - few) / (STEPS[1] - STEPS[0]) / cell.batch
    return evaluation, max(0.0, few / cell.batch - STEPS[0] * evaluation)
