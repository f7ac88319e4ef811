"""Levels of the diffusers schedulers: one record for each class says where its levels are to be found.

Three scalings of x are in use. DDIM and its kind, and the DPM-Solver family, keep x variance preserving; Euler, Heun
and the other k-diffusion samplers keep ``x / alpha``; flow matching keeps ``(1 - s) x0 + s eps``. A record names the
scaling and how the entries of `timesteps` map to entries of `sigmas`, half steps included.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..guidance.errors import UnsupportedSchedulerError, nearest
from ..guidance.prediction import EPSILON, FLOW, X0, Level, Parameterization, V
from .grid import Grid, Point

Scheduler = Any  # a diffusers scheduler, which has no types
Scaling = Callable[[Scheduler, float], Level]


def _vp(scheduler: Scheduler, sigma: float) -> Level:
    # These schedulers tabulate sigma/alpha, or the flow's sigma, and keep x in the scaling of the training.
    if scheduler.config.get("use_flow_sigmas"):
        if sigma > 1:
            # diffusers 0.42.1 converts the respaced ones for UniPC with Karras only; the others step with alpha < 0.
            raise UnsupportedSchedulerError(
                f"{type(scheduler).__name__}: sigma {sigma:g} is off the flow's path, which ends at 1; use_flow_sigmas "
                "does not go with Karras, exponential or beta sigmas: switch one of them off"
            )
        return Level.flow(sigma)
    alpha = 1 / math.sqrt(sigma * sigma + 1)
    return Level(alpha, sigma * alpha)


def _ve(scheduler: Scheduler, sigma: float) -> Level:
    return Level.ve(sigma)


def _flow(scheduler: Scheduler, sigma: float) -> Level:
    # Mochi's schedule is turned round: it counts from 0 at pure noise to 1, and its network emits x0 - eps.
    return Level.flow(1 - sigma if scheduler.config.get("invert_sigmas") else sigma)


def _each(scheduler: Scheduler, sigmas: list[float]) -> list[float]:
    """One evaluation a step, at the entry of the same index."""
    return sigmas


def _between(scheduler: Scheduler, sigmas: list[float]) -> list[float]:
    """DPM-Solver-2: every other evaluation at the interpolated sigma of the same entry."""
    half = _floats(scheduler.sigmas_interpol)
    return [half[i] if i % 2 else sigma for i, sigma in enumerate(sigmas)]


def _between_ancestral(scheduler: Scheduler, sigmas: list[float]) -> list[float]:
    """The ancestral one keeps the interpolated sigma one entry earlier: it lies below sigma_down, not sigma_next."""
    half = _floats(scheduler.sigmas_interpol)
    return [half[i - 1] if i % 2 else sigma for i, sigma in enumerate(sigmas)]


def _middle(scheduler: Scheduler, sigmas: list[float]) -> list[float]:
    """DPM-Solver++ SDE: every other evaluation at the middle of the step in log sigma."""
    return [math.sqrt(sigmas[i - 1] * sigma) if i % 2 else sigma for i, sigma in enumerate(sigmas)]


def _single(index: int, scheduler: Scheduler) -> tuple[int, int]:
    return index, 0


def _pairs(index: int, scheduler: Scheduler) -> tuple[int, int]:
    return divmod(index, 2)


def _pndm(index: int, scheduler: Scheduler) -> tuple[int, int]:
    # Runge-Kutta warm-up: three steps of four evaluations. Without it the first step is evaluated at both of its ends.
    warmed = len(scheduler.prk_timesteps) // 4
    if warmed:
        return divmod(index, 4) if index < 4 * warmed else (index - 3 * warmed, 0)
    return (0, index) if index < 2 else (index - 1, 0)


def _orders(index: int, scheduler: Scheduler) -> tuple[int, int]:
    # DPM-Solver, single step: orders 1, 2, ... make up one step, each of them from where that step began.
    orders = scheduler.order_list
    return orders[: index + 1].count(1) - 1, orders[index] - 1


@dataclass(frozen=True)
class Record:
    """Where one scheduler class keeps its levels.

    Args:
        scaling: from an entry of its sigmas to a level; None where it looks up ``alphas_cumprod`` by timestep instead.
        sigmas: the sigma of each evaluation, from ``scheduler.sigmas``.
        place: from the index of an entry of ``timesteps`` to (step, evaluation within the step).
        final: alpha_bar after the last step, of the schedulers that look it up.
        remembers: whether it keeps samples, or noise derived from samples, over more than one step. Predictions of x0
            do not count: they are true wherever the sample is moved.
    """

    scaling: Scaling | None
    sigmas: Callable[[Scheduler, list[float]], list[float]] = _each
    place: Callable[[int, Scheduler], tuple[int, int]] = _single
    final: Callable[[Scheduler], float] = lambda scheduler: 1.0
    remembers: Callable[[Scheduler], bool] = lambda scheduler: False


def _final_alpha(scheduler: Scheduler) -> float:
    return float(scheduler.final_alpha_cumprod)


def _always(scheduler: Scheduler) -> bool:
    return True


def _in_noise(scheduler: Scheduler) -> bool:
    return not str(scheduler.config.get("algorithm_type")).endswith("++")


RECORDS: dict[str, Record] = {
    "DDIMScheduler": Record(None, final=_final_alpha),
    "CogVideoXDDIMScheduler": Record(None, final=_final_alpha),
    "CogVideoXDPMScheduler": Record(None, final=_final_alpha),
    "DDPMScheduler": Record(None),
    "PNDMScheduler": Record(None, place=_pndm, final=_final_alpha, remembers=_always),
    "LCMScheduler": Record(None),
    "TCDScheduler": Record(None, final=lambda scheduler: float(scheduler.alphas_cumprod[0])),
    "DPMSolverMultistepScheduler": Record(_vp, remembers=_in_noise),
    "DPMSolverSinglestepScheduler": Record(_vp, place=_orders),
    "UniPCMultistepScheduler": Record(_vp, remembers=_always),
    "DEISMultistepScheduler": Record(_vp, remembers=_always),
    "SASolverScheduler": Record(_vp, remembers=_always),
    "EulerDiscreteScheduler": Record(_ve),
    "EulerAncestralDiscreteScheduler": Record(_ve),
    "LMSDiscreteScheduler": Record(_ve, remembers=_always),
    "HeunDiscreteScheduler": Record(_ve, place=_pairs),
    "KDPM2DiscreteScheduler": Record(_ve, _between, _pairs),
    "KDPM2AncestralDiscreteScheduler": Record(_ve, _between_ancestral, _pairs),
    "DPMSolverSDEScheduler": Record(_ve, _middle, _pairs),
    "EDMEulerScheduler": Record(_ve),
    "EDMDPMSolverMultistepScheduler": Record(_ve),
    "CosineDPMSolverMultistepScheduler": Record(_ve),
    "FlowMatchEulerDiscreteScheduler": Record(_flow),
    "FlowMatchHeunDiscreteScheduler": Record(_flow, place=_pairs),
}


def supported() -> tuple[str, ...]:
    """Names of the scheduler classes whose levels are known."""
    return tuple(sorted(RECORDS))


def _record(scheduler: Scheduler) -> tuple[str, Record]:
    # By name, so that importing this file does not import diffusers. A subclass that steps by its own code is another
    # scheduler, whose levels nobody has checked.
    cls = type(scheduler)
    for base in cls.__mro__:
        if base.__name__ in RECORDS and getattr(cls, "step", None) is getattr(base, "step", None):
            return base.__name__, RECORDS[base.__name__]
    raise UnsupportedSchedulerError(
        f"the levels of {cls.__name__} are not known{nearest(cls.__name__, RECORDS)} (all: {', '.join(supported())})"
    )


def _floats(values: Any) -> list[float]:
    return [float(value) for value in (values.tolist() if hasattr(values, "tolist") else values)]


def _is_set(scheduler: Scheduler) -> bool:
    # DDPM and EDM do not count the steps of a schedule that they were given; before set_timesteps, all the training
    # steps are there.
    if getattr(scheduler, "num_inference_steps", None) is not None:
        return True
    return bool(len(scheduler.timesteps) != scheduler.config.num_train_timesteps)


def grid(scheduler: Scheduler) -> Grid:
    """The level of every evaluation of a run, and of its result.

    Args:
        scheduler: a diffusers scheduler after ``set_timesteps``.

    Raises:
        UnsupportedSchedulerError: its levels are not known or not on its path, or its timesteps are not set.

    Waits once for the device that holds the timesteps; call it once a run.
    """
    _, record = _record(scheduler)
    if not _is_set(scheduler):
        raise UnsupportedSchedulerError(f"{type(scheduler).__name__} has no timesteps yet; call set_timesteps first")
    timesteps = _floats(scheduler.timesteps)
    if record.scaling is None:
        table = _floats(scheduler.alphas_cumprod)
        levels = [Level.vp(table[int(timestep)]) for timestep in timesteps]
        final = Level.vp(record.final(scheduler))
    else:
        sigmas = _floats(scheduler.sigmas)
        levels = [record.scaling(scheduler, sigma) for sigma in record.sigmas(scheduler, sigmas)[: len(timesteps)]]
        # Not the last entry: Euler's log_linear interpolation makes one sigma more than it steps to.
        final = record.scaling(scheduler, sigmas[len(timesteps)])
    # EDM schedulers count in log sigma or in its angle.
    training = None if hasattr(scheduler.config, "sigma_data") else scheduler.config.num_train_timesteps
    points = [
        Point(timestep, *record.place(index, scheduler), level, training and timestep / training)
        for index, (timestep, level) in enumerate(zip(timesteps, levels, strict=True))
    ]
    return Grid(tuple(points), final)


def remembers(scheduler: Scheduler) -> bool:
    """Whether `scheduler` keeps samples, or noise derived from samples, over more than one step."""
    return _record(scheduler)[1].remembers(scheduler)


_EMITTED = {"epsilon": EPSILON, "sample": X0, "v_prediction": V, "flow_prediction": FLOW}


def parameterization(scheduler: Scheduler) -> Parameterization:
    """What a network emits that runs under `scheduler`, from the scheduler's configuration.

    Raises:
        UnsupportedSchedulerError: the scheduler or its `prediction_type` is not known, or contradicts its sigmas.
    """
    name, _ = _record(scheduler)
    if name.startswith("FlowMatch"):
        return FLOW.negated() if scheduler.config.get("invert_sigmas") else FLOW
    emitted = scheduler.config.prediction_type
    if hasattr(scheduler.config, "sigma_data"):  # EDM's preconditioning
        names: Sequence[str] = ("epsilon", "v_prediction")
        if emitted in names:
            return Parameterization("edm" if emitted == "epsilon" else "edm-v", scheduler.config.sigma_data)
    elif emitted in _EMITTED:
        flow = bool(scheduler.config.get("use_flow_sigmas"))
        if (emitted == "flow_prediction" and not flow) or (emitted == "v_prediction" and flow):
            # diffusers runs it, and reads x0 from the formula of one path with the sigmas of the other.
            raise UnsupportedSchedulerError(f"{name}: prediction_type {emitted!r} needs use_flow_sigmas={not flow}")
        return _EMITTED[emitted]
    raise UnsupportedSchedulerError(
        f"{name}: prediction_type {emitted!r} is not known{nearest(str(emitted), _EMITTED)}"
    )
