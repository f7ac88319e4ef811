"""Stepping with a separate re-noising prediction, for any scheduler as it is.

A rule such as CFG++ gives two predictions: D, to which to step, and R, to re-noise with. The scheduler runs on R, and
the difference of the two is added once a step:

    x' = solver(R) + alpha' (D - R),    alpha' that of the level just reached.

A solver that evaluates several times a step gets it with the last evaluation, and D and R are that evaluation's.

Most schedulers can take x' as it is. Some remember samples, or noise that they derived from samples, over more than one
step, and a changed sample would not fit these (UniPC's corrector even drops the change). They solve for
``y = x - offset`` instead, which is never changed, with the x0 of R at x. The offset evolves as the solver would evolve
it with a denoiser that always answers 0. That factor is measured on a copy of the scheduler that runs beside on two
numbers, whose difference is free of the noise that a solver may add. For a solver that remembers nothing but x0, both
ways are the same.
"""

from __future__ import annotations

import copy
import inspect
import math
from typing import Any

import torch
from torch import Tensor

from ..guidance.errors import UnsupportedSchedulerError
from ..guidance.prediction import X0, Level, convert
from ..guidance.step import Estimate
from .grid import Grid
from .levels import option, parameterization, remembers
from .stepping import unhooked

UNCLIPPED = frozenset({"CogVideoXDDIMScheduler", "CogVideoXDPMScheduler", "TCDScheduler"})
"""They have the option `clip_sample`, and clip nothing (diffusers 0.42.1)."""
MULTISTEP = frozenset({"DPMSolverMultistepScheduler", "EDMDPMSolverMultistepScheduler"})
FIRST_ORDER = frozenset(
    {
        "CogVideoXDDIMScheduler",
        "DDIMScheduler",
        "DDPMScheduler",
        "EDMEulerScheduler",
        "EulerAncestralDiscreteScheduler",
        "EulerDiscreteScheduler",
        "FlowMatchEulerDiscreteScheduler",
        "LCMScheduler",
        "TCDScheduler",
    }
)
"""Schedulers that keep no earlier prediction and evaluate once a step."""


class Renoising:
    """The steps of one run under a stack that re-noises.

    Args:
        scheduler: any supported scheduler, after ``set_timesteps``.
        schedule: its grid.
        begin: index of the schedule's point at which the run begins.
        guides_history: whether a second-order step's difference is that of D and the older R; see `CFGPlusPlus`.

    Raises:
        UnsupportedSchedulerError: the scheduler thresholds by quantiles, which depend on D and R each in its own way;
            or the history is to be guided and the scheduler is not of the first order, nor DPM-Solver++ 2M.

    Call `before` and `after` around each ``scheduler.step``.
    """

    def __init__(self, scheduler: Any, schedule: Grid, begin: int = 0, guides_history: bool = False) -> None:
        if option(scheduler, "thresholding"):
            raise UnsupportedSchedulerError(
                f"{type(scheduler).__name__} with thresholding=True changes the prediction that it gets; a rule that "
                "re-noises needs thresholding=False"
            )
        self.schedule, self.position, self.begin = schedule, begin, begin
        self.second_order = guides_history and _order(scheduler) == 2
        self.ends_lower = (  # its last step is of the first order
            option(scheduler, "final_sigmas_type") == "zero"
            or option(scheduler, "euler_at_final")
            or (option(scheduler, "lower_order_final") and len(schedule.points) < 15)
        )
        self.emits = parameterization(scheduler)  # not the network's: a pipeline may negate between the two
        names = {cls.__name__ for cls in type(scheduler).__mro__}
        clips = option(scheduler, "clip_sample") and not UNCLIPPED & names
        self.clip = float(option(scheduler, "clip_sample_range") or 1.0) if clips else None
        self.homogeneous = _Homogeneous(scheduler) if remembers(scheduler) else None
        self.offset: Tensor | None = None
        self.added: Tensor | None = None

    def before(self, estimate: Estimate, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the arguments of the scheduler's step: a network output, and a sample.

        Args:
            estimate: the guided estimate at `x`.
            x: the samples.
        """
        point = self.schedule.points[self.position]
        base = estimate.renoise or estimate.prediction
        self.added = None
        if estimate.renoise is not None and self.schedule.ends_step(self.position):
            self.added = self._clipped(estimate.prediction.denoised) - self._clipped(base.denoised)
            if self.second_order:
                self.added = self.added * (1 + self._share())
        if self.homogeneous is None or self.offset is None:
            return base.native, x
        y = x - self.offset
        return convert(base.denoised, y, point.level, X0, self.emits).to(x.dtype), y.to(x.dtype)

    def after(self, x: Tensor) -> Tensor:
        """The samples, from what the scheduler returned."""
        point, reached = self.schedule.points[self.position], self.schedule.after(self.position)
        offset = None
        if self.homogeneous is not None:
            factor = self.homogeneous.step(self.position, point.level)
            offset = None if self.offset is None else factor * self.offset
        if self.added is not None:
            added = reached.alpha * self.added
            offset = added if offset is None else offset + added
        self.offset = offset if self.homogeneous is not None else None
        self.position += 1
        return x if offset is None else (x + offset).to(x.dtype)

    def _share(self) -> float:
        """The weight of the newest prediction in the difference of a step; 0 where that is of the first order."""
        first, last_one = self.position == self.begin, self.position + 1 == len(self.schedule.points)
        if first or (last_one and self.ends_lower):
            return 0.0
        earlier, here = (self.schedule.points[self.position + back].level.k_sigma for back in (-1, 0))
        h, last = math.log(here / self.schedule.after(self.position).k_sigma), math.log(earlier / here)
        return -math.expm1(-h) * h / (2 * last)

    def _clipped(self, denoised: Tensor) -> Tensor:
        # The scheduler itself does the same to the prediction that it is given.
        return denoised if self.clip is None else denoised.clamp(-self.clip, self.clip)


def _order(scheduler: Any) -> int:
    """The order of a scheduler whose history can be guided: 2 of DPM-Solver++ 2M, 1 of those of the first order.

    Raises:
        UnsupportedSchedulerError: it is another solver.
    """
    names = {cls.__name__ for cls in type(scheduler).__mro__}
    order = option(scheduler, "solver_order")
    if names & FIRST_ORDER or (names & MULTISTEP and order == 1):
        return 1
    form = option(scheduler, "algorithm_type"), option(scheduler, "solver_type")
    if names & MULTISTEP and order == 2 and form == ("dpmsolver++", "midpoint"):
        return 2
    raise UnsupportedSchedulerError(
        f"second_order='guided' is a form of DPM-Solver++ 2M, and {type(scheduler).__name__} with this configuration "
        "is another solver; leave it out, or use DPMSolverMultistepScheduler with algorithm_type='dpmsolver++', "
        "solver_order=2 and solver_type='midpoint'"
    )


class _Homogeneous:
    """A copy of a scheduler whose network always answers x0 = 0, to measure how a step scales the sample."""

    def __init__(self, scheduler: Any) -> None:
        self.scheduler, self.emits = unhooked(copy.deepcopy(scheduler)), parameterization(scheduler)
        for name, value in list(vars(self.scheduler).items()):
            if isinstance(value, Tensor):  # to where the numbers are, so that no step waits for a device
                setattr(self.scheduler, name, value.cpu())
        if type(scheduler).__name__ != "PNDMScheduler":  # which is never told x0
            # An exact 0: what the scheduler made of another form would differ from it by its float32 tables.
            self.scheduler.register_to_config(prediction_type="sample")
            self.emits = X0
        self.timesteps = self.scheduler.timesteps
        self.numbers = torch.tensor([1.0, 0.0], dtype=torch.float64).reshape(2, 1, 1, 1)
        takes_generator = "generator" in inspect.signature(scheduler.step).parameters
        # The same noise for both numbers, which their difference does not have.
        self.options = {"generator": [torch.Generator().manual_seed(0) for _ in range(2)]} if takes_generator else {}

    def step(self, position: int, level: Level) -> float:
        """Return the factor by which one evaluation scales the sample."""
        timestep, before = self.timesteps[position], self.numbers
        if hasattr(self.scheduler, "scale_model_input"):
            self.scheduler.scale_model_input(before, timestep)
        output = convert(torch.zeros_like(before), before, level, X0, self.emits)
        self.numbers = self.scheduler.step(output, timestep, before, **self.options, return_dict=False)[0].double()
        size = float(before[0] - before[1])
        return float(self.numbers[0] - self.numbers[1]) / size if size else 0.0
