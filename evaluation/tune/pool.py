"""Stacks with their images: a run folder whose sweep grows by the stacks that are to be measured, each made once."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

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
from ..spec.sweep import Sweep
from ..store.folder import SWEEP, RunFolder
from .frontier import Point
from .goal import likeness
from .settings import Prompts, Settings, Setup

MEASURED = "measured.json"
_VALUES: TypeAdapter[dict[str, dict[str, list[float]]]] = TypeAdapter(dict[str, dict[str, list[float]]])
"""By cell and full name of a metric, a number for each sample."""


@dataclass
class Grown:
    """Stacks whose images on some prompts are made in one run folder.

    Args:
        location: of the folder.
        settings: what images are made.
        prompts: of the samples.
        generator: the model.
        options: how to run.
        progress: told what happens.

    Raises:
        InputError: the folder holds something else.
    """

    location: str
    settings: Setup
    prompts: Prompts
    generator: Generator
    options: Options
    progress: Progress = field(default_factory=Progress)
    what: ClassVar[str] = "search"

    def __post_init__(self) -> None:
        self.run, self.stacks = RunFolder(self.location), list[str]()
        if self.run.location.exists(SWEEP):
            before = self.run.sweep()
            self.stacks = list(before.stacks)
            if difference := self.differs(before):
                raise InputError(f"{self.run} is of another {self.what}: {difference}; choose another --out")

    def differs(self, before: Sweep) -> str:
        """What the sweep of the folder has that this one has not; "" for nothing."""
        return differs(before, self.settings.sweep(self.prompts, self.stacks))

    def made(self, stacks: Sequence[str]) -> dict[str, Images]:
        """Make what is missing of some stacks and of all before them; returns the images of each.

        Raises:
            GuidestackError: the model cannot run one of them, loses samples to NaN, or the folder cannot be written.
            KeyboardInterrupt: Ctrl-C; what was finished stays.
        """
        self.stacks += [stack for stack in dict.fromkeys(stacks) if stack not in self.stacks]
        prepared = Prepared(self.settings.sweep(self.prompts, self.stacks), self.options, self.generator)
        refuse_lost(run_sweep(prepared, self.run, self.progress))
        cells = Cells(self.run)
        return {cell.stack: cells.by_name[prepared.addresses.cell(cell)] for cell in prepared.cells}


@dataclass
class Pool(Grown):
    """Stacks whose images are compared with those of the reference.

    Args:
        against: the pool that has the reference's images; None for this one, which then begins with them.
    """

    settings: Settings
    against: Pool | None = None
    what: ClassVar[str] = "tuning"

    def __post_init__(self) -> None:
        self.reference = str(self.settings.reference)
        super().__post_init__()
        self.points: dict[str, Point] = {}
        if not self.stacks and self.against is None:
            self.stacks = [self.reference]
        self._values: dict[str, dict[str, list[float]]] = self._read()

    def differs(self, before: Sweep) -> str:
        """What the sweep of the folder has that this one has not, such as another reference."""
        if before.baseline != self.reference:
            return f"the reference is {before.baseline} there and {self.reference} here"
        return super().differs(before)

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
        """Make what is missing, and measure.

        Raises:
            GuidestackError, KeyboardInterrupt: as `made`.
        """
        if any(stack not in self.points for stack in stacks):
            self._points(self.made(stacks))
        return [self.points[stack] for stack in stacks]

    def _points(self, made: Mapping[str, Images]) -> None:
        """Measure the stacks that are not yet."""
        baseline = made[self.reference] if self.against is None else self.against.images()
        fresh = False
        for stack, images in made.items():
            if stack in self.points:
                continue
            name = images.told["cell"]
            fresh |= self._measured(name, images, baseline)
            values = self._values[name]
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
