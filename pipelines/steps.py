"""The scheduler's side of a guided call: where the call stands in its schedule, and the hooks that tell it."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..guidance.errors import InputError
from ..guidance.prediction import Prediction
from ..guidance.rule import Stack
from ..guidance.step import Estimate
from ..samplers import Grid, entry, grid, parameterization
from ..samplers.grid import Point
from ..samplers.renoise import Renoising
from .families.record import Call, Family, Pipeline
from .hooks import Caller, Mine, Watch
from .undisturbed import Undisturbed


class Steps:
    """Where a guided call stands in its schedule: hooks on its scheduler count the steps, take x, and re-noise.

    Args:
        pipe: the pipeline.
        family: its record.
        stack: the stack.
        call: the arguments that the pipeline is called with.

    Attributes:
        caller: whose calls of the scheduler and of the denoiser are watched.
        emitted: what the denoiser emits.
        schedule: the schedule; None before the first evaluation, when the pipeline has set its timesteps.
        position: index of the schedule's point that is evaluated next.
        began: number of the first step.
        fired: evaluations that were made.
        stepped: steps that the scheduler made.
        x: samples as the scheduler was handed them last; None where it is not asked to scale them.
        estimate: the last evaluation's, in the form in which the scheduler is handed samples.
        renoising: of a stack that re-noises, what its steps do; else None.
    """

    def __init__(self, pipe: Pipeline, family: Family, stack: Stack, call: Call) -> None:
        self.pipe, self.family, self.stack, self.call = pipe, family, stack, call
        self.caller = Caller(pipe, call.values())
        emitted = parameterization(pipe.scheduler)
        self.emitted = emitted.negated() if family.negates else emitted
        self.undisturbed = Undisturbed(pipe, family, stack)
        self.schedule: Grid | None = None
        self.position = self.began = self.fired = self.stepped = 0
        self.x: Tensor | None = None
        self.estimate: Estimate | None = None
        self.renoising: Renoising | None = None

    @property
    def grid(self) -> Grid:
        """The schedule, which is there from the first evaluation on."""
        assert self.schedule is not None
        return self.schedule

    @property
    def point(self) -> Point:
        """The point of the schedule that is evaluated next."""
        return self.grid.points[self.position]

    def coming(self, most: int | None = None) -> Sequence[Point]:
        """The next points of the schedule, that of the next evaluation first; at most so many."""
        return self.grid.points[self.position :][:most]

    def begin(self, arguments: Mapping[str, Any]) -> Grid:
        """Find the place in the schedule at the first evaluation, given the denoiser's arguments."""
        self.position = self._entry(arguments)
        self.schedule = self.schedule or grid(self.pipe.scheduler, self.position)
        self.began = self.point.step
        if self.stack.renoises:
            self.renoising = Renoising(self.pipe.scheduler, self.grid, self.position, self.stack.guides_history)
        return self.grid

    def _entry(self, arguments: Mapping[str, Any]) -> int:
        """Where in the schedule the pipeline begins; not at 0 in image-to-image."""
        begin = getattr(self.pipe.scheduler, "begin_index", None)
        if begin is not None:  # the pipeline told the scheduler
            return int(begin)
        told = arguments[self.family.timestep]
        # Where each token has its own, those of a given picture are told that they are clean.
        timestep = float(told.max() if torch.is_tensor(told) else told)
        return entry(self.pipe.scheduler, told, self.family.clock(self.pipe, timestep))

    def evaluated(self, estimate: Estimate, arguments: Mapping[str, Any]) -> None:
        """Take the estimate of an evaluation, of which the denoiser's arguments are given."""
        self.fired += 1
        self.estimate = estimate if self.renoising is None else self._handed(estimate, arguments)

    def _handed(self, estimate: Estimate, arguments: Mapping[str, Any]) -> Estimate:
        """`estimate` in the form in which the scheduler is handed samples; only re-noising looks at it."""

        def one(prediction: Prediction) -> Prediction:
            native, x = (self.family.handed(self.pipe, arguments, each) for each in (prediction.native, prediction.x))
            return replace(prediction, native=native, x=x)

        return replace(
            estimate,
            prediction=one(estimate.prediction),
            renoise=None if estimate.renoise is None else one(estimate.renoise),
        )

    def check(self) -> None:
        """Refuse to go on where somebody changed meanwhile what the estimate or the step depends on.

        Raises:
            GuidanceNotAppliedError: the scheduler was replaced or used, or the pipeline's own guidance was changed.
        """
        self.undisturbed.check(self.schedule, self.position, self.began)

    # --- hooks ---------------------------------------------------------------------------------------------------

    @property
    def watched(self) -> Mapping[str, tuple[Watch, Mine]]:
        """What to replace the scheduler's methods with for the length of the call, and for whom, by name."""
        return {"scale_model_input": (self.watch_input, self.caller.owns), "step": (self.watch_step, self.caller.owns)}

    def watch_input(self, scale: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Take x where the scheduler is handed it: the denoiser sees only what comes out."""

        def scale_model_input(sample: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            self.x = sample
            return scale(sample, *args, **kwargs)

        return scale_model_input

    def watch_step(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """Count the steps, by which the position in the schedule is known without asking a device; and re-noise."""
        names = list(inspect.signature(step).parameters)

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.check()
            if self.renoising is None:
                result = step(*args, **kwargs)
            else:
                given = dict(zip(names, args, strict=False)) | kwargs
                result = self._renoised(self.renoising, step, given)
            self.position += 1
            self.stepped += 1
            self.undisturbed.left()
            return result

        return counted

    def _renoised(self, renoising: Renoising, step: Callable[..., Any], given: dict[str, Any]) -> Any:
        """A step whose re-noising prediction is not where it jumps."""
        assert self.estimate is not None  # the denoiser was called before
        sample = given["sample"]
        batch = len(self.estimate.prediction.native)
        copies = len(sample) // batch  # some pipelines hand over both halves
        told, at = renoising.before(self.estimate, sample[:batch])
        if renoising.offset is not None:
            given = {**given, "model_output": torch.cat([told] * copies), "sample": torch.cat([at] * copies)}
        result = step(**given)
        reached = result[0]
        moved = torch.cat([renoising.after(reached[:batch])] * copies)
        if isinstance(result, tuple):
            return (moved, *result[1:])
        result.prev_sample = moved
        return result

    # --- the end -------------------------------------------------------------------------------------------------

    def explain_none(self) -> None:
        """Say why image-to-image ran no step.

        Raises:
            InputError: `strength` of the steps is less than one.
        """
        takes = inspect.signature(self.pipe.__call__).parameters
        names = ("strength", "num_inference_steps")
        if not set(names) <= set(takes):
            return
        strength, steps = (self.call.get(name, takes[name].default) for name in names)
        if strength and steps and strength * steps < 1:
            raise InputError(
                f"strength={strength:g} of {steps} steps is less than one step, and nothing was guided; give "
                f"strength={math.ceil(100 / steps) / 100:g} or more, or {math.ceil(1 / strength)} steps"
            )

    def finish(self) -> None:
        """Check that the whole schedule was run, where the pipeline does not see to that by itself."""
