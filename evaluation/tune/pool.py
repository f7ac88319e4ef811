"""Stacks with their images: a run folder whose sweep grows by the stacks that are to be measured, each made once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from pydantic import TypeAdapter

from ...guidance.errors import InputError
from ...guidance.words import counted
from ...pipelines.models.generator import Generator
from ..analysis.measure import Cell as Images
from ..analysis.measure import Cells
from ..run.history import differs
from ..run.progress import Progress
from ..run.runner import Options, Prepared, refuse_lost, run_sweep
from ..store.folder import SWEEP, RunFolder
from .frontier import Point
from .goal import likeness
from .settings import Prompts, Settings

MEASURED = "measured.json"
_VALUES: TypeAdapter[dict[str, dict[str, list[float]]]] = TypeAdapter(dict[str, dict[str, list[float]]])
"""By cell and full name of a metric, a number for each sample."""


@dataclass
class Pool:
    """Stacks whose images on some prompts are made and measured in one run folder.

    Args:
        location: of the folder.
        settings: of the tuning.
        prompts: of the samples.
        generator: the model.
        options: how to run.
        progress: told what happens.
        against: the pool that has the reference's images; None for this one, which then begins with them.

    Raises:
        InputError: the folder holds something else.
    """

    location: str
    settings: Settings
    prompts: Prompts
    generator: Generator
    options: Options
    progress: Progress = field(default_factory=Progress)
    against: Pool | None = None

    def __post_init__(self) -> None:
        self.run, self.reference = RunFolder(self.location), str(self.settings.reference)
        self.points: dict[str, Point] = {}
        there: list[str] = []
        if self.run.location.exists(SWEEP):
            before = self.run.sweep()
            there = list(before.stacks)
            difference = differs(before, self.settings.sweep(self.prompts, there))
            if before.baseline != self.reference:
                difference = f"the reference is {before.baseline} there and {self.reference} here"
            if difference:
                raise InputError(f"{self.run} is of another tuning: {difference}; choose another --out")
        self.stacks = there or ([self.reference] if self.against is None else [])
        self._values: dict[str, dict[str, list[float]]] = self._read()

    def _read(self) -> dict[str, dict[str, list[float]]]:
        try:
            return _VALUES.validate_json(self.run.location.read(MEASURED), strict=True)
        except (FileNotFoundError, ValueError):
            return {}  # measured again from the images

    @property
    def samples(self) -> int:
        """Number of samples of each stack."""
        return len(self.prompts.prompts) * self.settings.each

    def measure(self, stacks: Sequence[str]) -> list[Point]:
        """Make what is missing of some stacks and of all before them, and measure.

        Raises:
            GuidestackError: the model cannot run one of them, loses samples to NaN, or the folder cannot be written.
            KeyboardInterrupt: Ctrl-C; what was finished stays.
        """
        new = [stack for stack in dict.fromkeys(stacks) if stack not in self.stacks]
        if new or any(stack not in self.points for stack in stacks):
            self.stacks += new
            prepared = Prepared(self.settings.sweep(self.prompts, self.stacks), self.options, self.generator)
            refuse_lost(run_sweep(prepared, self.run, self.progress))
            self._points(prepared)
        return [self.points[stack] for stack in stacks]

    def _points(self, prepared: Prepared) -> None:
        """Measure the stacks that are not yet."""
        cells = Cells(self.run)
        name_of = {cell.stack: prepared.addresses.cell(cell) for cell in prepared.cells}
        baseline = cells.by_name[name_of[self.reference]] if self.against is None else self.against.images()
        fresh = False
        for stack in self.stacks:
            if stack in self.points:
                continue
            images = cells.by_name[name_of[stack]]
            fresh |= self._measured(name_of[stack], images, baseline)
            values = self._values[name_of[stack]]
            self.points[stack] = Point(
                stack,
                int(self.settings.fixed["steps"]),
                images.numbers("evaluations"),
                {metric: np.array(values[likeness(metric).full_name]) for metric in self.settings.metrics},
                images.prompts,
            )
        if fresh:
            self.run.write_bytes(MEASURED, json.dumps(self._values).encode())

    def _measured(self, name: str, images: Images, baseline: Images) -> bool:
        """Measure a cell unless that is known; whether it was not."""
        if len(images) != self.samples:
            raise InputError(
                f"{self.run} lacks {counted(self.samples - len(images), 'image')} of {name}; remove it and run again"
            )
        known = self._values.setdefault(name, {})
        fresh = False
        for metric in map(likeness, self.settings.metrics):
            if len(known.get(metric.full_name, ())) != len(images):
                known[metric.full_name] = images.values(metric, baseline).tolist()
                fresh = True
        return fresh

    def images(self) -> Images:
        """The reference's images.

        Raises:
            InputError: there are none yet.
        """
        cells = self.run.cells()["cells"]
        return Cells(self.run).by_name[next(one["cell"] for one in cells if one["stack"] == self.reference)]

    def at(self, steps: int, location: str) -> Pool:
        """A pool of the same samples with another number of steps, compared with this one's reference."""
        settings = replace(self.settings, fixed={**self.settings.fixed, "steps": steps})
        return Pool(location, settings, self.prompts, self.generator, self.options, self.progress, self)
