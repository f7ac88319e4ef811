"""The scheduler's side of a guided call: the position in its schedule, and the hooks that follow it."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..guidance.errors import InputError, UnsupportedPipelineError
from ..guidance.keyed import Keys
from ..guidance.plan import level_before
from ..guidance.prediction import Prediction
from ..guidance.rule import Stack
from ..guidance.run import GuidedRun
from ..guidance.step import Estimate, Step
from ..samplers import Grid, entry, grid, parameterization
from ..samplers.grid import Point
from ..samplers.moving import Beside, advanced, check_room
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
        moved: samples that the scheduler is to be handed at its next step in place of the pipeline's; None for those.
        ended: from the samples that the last step of the schedule leads to to those that the run ends with.
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
        self.moved: Tensor | None = None
        self.ended: Callable[[Tensor], Tensor] | None = None

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
        self.began, self.begin_at = self.point.step, self.position
        check_room(self.stack, self.pipe.scheduler)
        if self.stack.renoises:
            self.renoising = Renoising(self.pipe.scheduler, self.grid, self.position, self.stack.guides_history)
        return self.grid

    def _entry(self, arguments: Mapping[str, Any]) -> int:
        """Where in the schedule the pipeline begins; not at 0 in image-to-image."""
        begin = getattr(self.pipe.scheduler, "begin_index", None)
        if begin is not None:  # the pipeline told the scheduler
            return int(begin)
        told = arguments[self.family.timestep]
        # Where each token has a time of its own, the tokens of a given picture have the time of clean samples.
        timestep = float(told.max() if torch.is_tensor(told) else told)
        return entry(self.pipe.scheduler, told, self.family.clock(self.pipe, timestep))

    def scaled(self, x: Tensor, position: int | None = None) -> Tensor:
        """Samples as the pipeline hands them to its denoiser, at a point of the schedule; by default the next one."""
        if self.x is None:
            return x
        position = self.position if position is None else position
        scheduler = advanced(self.pipe.scheduler, position - self.position)
        scaled: Tensor = scheduler.scale_model_input(x, scheduler.timesteps[position])
        return scaled

    def evaluated(self, estimate: Estimate, arguments: Mapping[str, Any]) -> None:
        """Take the estimate of an evaluation, of which the denoiser's arguments are given."""
        self.fired += 1
        self.estimate = estimate if self.renoising is None else self._handed(estimate, arguments)

    def where(self, run: GuidedRun) -> Step:
        """Return the position of a run at its next evaluation."""
        point, before = self.point, level_before(self.grid.points, self.position, self.begin_at)
        after = self.grid.reached(self.position)
        return run.step(point.step, point.level, point.evaluation, point.time, after, before)

    def move(self, x: Tensor, arguments: Mapping[str, Any]) -> None:
        """Let the scheduler be handed samples `x` at its next step, given the denoiser's arguments."""
        self.moved = self.family.handed(self.pipe, arguments, x)

    def beside(self, x: Tensor, estimate: Estimate, keys: Keys, arguments: Mapping[str, Any], ahead: int = 0) -> Tensor:
        """The samples after the scheduler's step from `x`, `ahead` of this one, which the pipeline does not see.

        Raises:
            UnsupportedPipelineError: the pipeline hands its scheduler samples in another form than its denoiser.
        """
        sample = self.family.handed(self.pipe, arguments, x)
        if sample.shape != x.shape:
            raise UnsupportedPipelineError(
                f"{self.stack} takes steps of its own, and {type(self.pipe).__name__} hands its scheduler samples of "
                f"shape {tuple(sample.shape)} and its network {tuple(x.shape)}; it runs in guidestack.sample"
            )
        if self.family.negates:
            estimate = _negated(estimate)
        eta = self.call.get("eta")
        takes = "eta" in inspect.signature(self.pipe.scheduler.step).parameters
        options = {"eta": eta} if takes and eta is not None else {}
        return Beside(self.pipe.scheduler, self.grid).step(sample, estimate, self.position, keys, ahead, **options)

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
        """Refuse to continue if other code has changed what the estimate or the step depends on.

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
            given = dict(zip(names, args, strict=False)) | kwargs
            if self.moved is not None:
                given["sample"] = torch.cat([self.moved] * (len(given["sample"]) // len(self.moved))).to(
                    given["sample"]
                )
                args, kwargs, self.moved = (), given, None
            if self.renoising is None:
                result = step(*args, **kwargs)
            else:
                result = self._renoised(self.renoising, step, given)
            self.position += 1
            if self.ended is not None and self.position == len(self.grid.points):
                result = self._reached(result, self.ended)
            self.stepped += 1
            self.undisturbed.left()
            return result

        return counted

    def _renoised(self, renoising: Renoising, step: Callable[..., Any], given: dict[str, Any]) -> Any:
        """Take a step whose re-noising prediction is another than the estimate's."""
        assert self.estimate is not None  # the denoiser was called before
        sample = given["sample"]
        batch = len(self.estimate.prediction.native)
        copies = len(sample) // batch  # some pipelines hand over both halves
        told, at = renoising.before(self.estimate, sample[:batch])
        if renoising.offset is not None:
            given = {**given, "model_output": torch.cat([told] * copies), "sample": torch.cat([at] * copies)}
        return self._reached(step(**given), renoising.after)

    def _reached(self, result: Any, change: Callable[[Tensor], Tensor]) -> Any:
        """What a step returned, with a change of its samples."""
        assert self.estimate is not None  # the denoiser was called before
        batch = len(self.estimate.prediction.native)
        reached = result[0]
        before = reached[:batch]
        if (after := change(before)) is before:
            return result
        moved = torch.cat([after] * (len(reached) // batch))  # some pipelines hand over both halves
        if isinstance(result, tuple):
            return (moved, *result[1:])
        result.prev_sample = moved
        return result

    # --- the end -------------------------------------------------------------------------------------------------

    def explain_none(self) -> None:
        """Raise the error for image-to-image that ran no step.

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


def _negated(estimate: Estimate) -> Estimate:
    """The estimate of a network that emits minus what the scheduler is given."""

    def one(prediction: Prediction) -> Prediction:
        return replace(prediction, native=-prediction.native, parameterization=prediction.parameterization.negated())

    renoise = None if estimate.renoise is None else one(estimate.renoise)
    return replace(estimate, prediction=one(estimate.prediction), renoise=renoise)
