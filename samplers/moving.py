"""Rules that take turns, under a scheduler: which schedulers support them, and steps beside the run's own."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import Tensor

from ..guidance.errors import UnsupportedSchedulerError
from ..guidance.keyed import Keys
from ..guidance.move import turning
from ..guidance.plan import level_before
from ..guidance.rule import Rule
from ..guidance.step import Estimate, Step
from .grid import Grid
from .levels import option
from .renoise import FIRST_ORDER, MULTISTEP, Renoising
from .stepping import unhooked

NOISY = frozenset({"DDPMScheduler", "EulerAncestralDiscreteScheduler"})
"""Schedulers that draw fresh noise in each step, as the reverse SDE does."""


def check_room(stack: Rule, scheduler: Any) -> None:
    """Refuse a scheduler whose steps depend on more than the sample and one prediction, under rules that take turns.

    A rule that moves samples between two steps leaves such a scheduler with a memory of where they were before.

    Raises:
        UnsupportedSchedulerError: naming the rule, the scheduler and what to use.
    """
    if (rule := turning(stack)) is None:
        return
    names = {cls.__name__ for cls in type(scheduler).__mro__}
    flow = type(scheduler).__name__.startswith("Flow") or option(scheduler, "use_flow_sigmas")
    couples = any(part.couples for part in stack.parts())
    fresh = "DDPMScheduler (--sampler ddpm) or EulerAncestralDiscreteScheduler (--sampler euler-a)"
    if flow:
        fresh = "FlowMatchEulerDiscreteScheduler with stochastic_sampling=True"
    first = names & FIRST_ORDER or (names & MULTISTEP and option(scheduler, "solver_order") == 1)
    if not first or "old_pred_original_sample" in inspect.signature(scheduler.step).parameters:
        kind = type(scheduler).__name__
        instead = "DDIMScheduler (--sampler ddim), EulerAncestralDiscreteScheduler (--sampler euler-a)"
        if flow:
            instead = "FlowMatchEulerDiscreteScheduler (--sampler flow-euler)"
        instead = f"{fresh}: particles need fresh noise" if couples else f"{instead} or another of the first order"
        raise UnsupportedSchedulerError(
            f"{rule} moves samples between two steps, and {kind} evaluates more than once a step or remembers earlier "
            f"steps; use {instead}"
        )
    sde = str(option(scheduler, "algorithm_type")).startswith("sde-") or option(scheduler, "stochastic_sampling")
    if couples and not (names & NOISY or sde):
        raise UnsupportedSchedulerError(
            f"{rule} duplicates samples, which {type(scheduler).__name__} keeps identical without "
            f"fresh noise; use {fresh}"
        )
    if any(part.drifts for part in stack.parts()) and not _reverses(scheduler, names):
        raise UnsupportedSchedulerError(
            f"{rule} with a drift weighs samples by the noise of the reverse SDE, and {type(scheduler).__name__} draws "
            "another one here, or clips; use EulerAncestralDiscreteScheduler (--sampler euler-a), or DDPMScheduler "
            "with variance_type='fixed_small', clip_sample=False and thresholding=False"
        )


def _reverses(scheduler: Any, names: set[str]) -> bool:
    """Whether the steps of a scheduler, one that draws noise, have the law of the reverse SDE given the clean sample.

    Args:
        scheduler: the scheduler.
        names: of its class and those it is derived from.
    """
    if option(scheduler, "clip_sample") or option(scheduler, "thresholding"):
        return False
    if "DDPMScheduler" in names:
        return option(scheduler, "variance_type") in (None, "fixed_small", "fixed_small_log")
    return "EulerAncestralDiscreteScheduler" in names or option(scheduler, "algorithm_type") == "sde-dpmsolver++"


@contextmanager
def given_room(pipe: Any, stack: Rule) -> Iterator[None]:
    """While the context lasts, a diffusion pipeline has DDPM as its scheduler if a rule takes turns, else its own."""
    own = pipe.scheduler
    if turning(stack) is not None:
        from diffusers import DDPMScheduler

        pipe.scheduler = DDPMScheduler.from_config(own.config, clip_sample=False)
    try:
        yield
    finally:
        pipe.scheduler = own


def later(step: Step, schedule: Grid, position: int) -> Step:
    """Return the later position of a run that is now at `step`: that at point `position` of its schedule."""
    point = schedule.points[position]
    return replace(
        step,
        index=point.step,
        level=point.level,
        step_level=point.level,
        time=point.time,
        before=level_before(schedule.points, position),
        after=schedule.reached(position),
    )


def advanced(scheduler: Any, ahead: int) -> Any:
    """Return a copy of a first-order scheduler that is `ahead` steps further."""
    copied = unhooked(copy.copy(scheduler))  # it counts its steps, and changes nothing else
    for name in ("_step_index", "_begin_index"):
        if ahead and getattr(copied, name, None) is not None:
            setattr(copied, name, getattr(copied, name) + ahead)
            break
    return copied


class Beside:
    """Steps of a scheduler beside those of its run, which leave the scheduler where it is.

    Args:
        scheduler: one that `check_room` admits, after ``set_timesteps``.
        schedule: its grid.
    """

    def __init__(self, scheduler: Any, schedule: Grid) -> None:
        self.scheduler, self.schedule = scheduler, schedule
        self.takes_generator = "generator" in inspect.signature(scheduler.step).parameters

    def step(self, x: Tensor, estimate: Estimate, position: int, keys: Keys, ahead: int = 0, **options: Any) -> Tensor:
        """The samples after the step from `x`.

        Args:
            x: the samples, in the form in which the scheduler is handed them.
            estimate: their estimate, in the same form.
            position: index of the schedule's point at which the scheduler stands.
            keys: what the random numbers are made from, for a scheduler that draws noise.
            ahead: how many steps later the step begins.
            **options: further arguments of the scheduler's ``step``.
        """
        beside, position = advanced(self.scheduler, ahead), position + ahead
        timestep = beside.timesteps[position]
        if hasattr(beside, "scale_model_input"):
            beside.scale_model_input(x, timestep)
        if self.takes_generator:
            options = {**options, "generator": keys.generators(range(len(x)), "step")}
        renoising = Renoising(beside, self.schedule, position) if estimate.renoise else None
        told, at = renoising.before(estimate, x) if renoising else (estimate.prediction.native, x)
        stepped: Tensor = beside.step(told, timestep, at, **options, return_dict=False)[0]
        return renoising.after(stepped) if renoising else stepped
