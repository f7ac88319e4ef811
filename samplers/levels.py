"""Noise levels of the diffusers schedulers: a record for each class says where the scheduler keeps them.

Three scalings of x are in use. DDIM and its kind, and the DPM-Solver family, keep x variance preserving; Euler, Heun
and the other k-diffusion samplers keep ``x / alpha``; flow matching keeps ``(1 - s) x0 + s eps``. A record names the
scaling and how the entries of `timesteps` map to entries of `sigmas`, half steps included.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..guidance.errors import UnsupportedSchedulerError, nearest
from ..guidance.prediction import EPSILON, FLOW, X0, Level, Parameterization, V
from .grid import Grid, Point

Scheduler = Any  # a diffusers scheduler, which has no types
Scaling = Callable[[Scheduler, float], Level]


def option(scheduler: Scheduler, name: str) -> Any:
    """An entry of the configuration that the scheduler itself reads; None where it has none of that name.

    A scheduler that was made from another one's configuration keeps all of that, and looks at its own part only.
    """
    return _own(type(scheduler), scheduler.config, name)


def _own(cls: type, config: Any, name: str) -> Any:
    return config.get(name) if name in inspect.signature(cls.__init__).parameters else None  # type: ignore[misc]


def _vp(scheduler: Scheduler, sigma: float) -> Level:
    # These schedulers tabulate sigma/alpha, or the flow's sigma, and keep x in the scaling of the training.
    if option(scheduler, "use_flow_sigmas"):
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
    return Level.flow(1 - sigma if option(scheduler, "invert_sigmas") else sigma)


def _each(scheduler: Scheduler, sigmas: list[float]) -> list[float]:
    """One evaluation a step: its level is the entry of the same index."""
    return sigmas


def _between(scheduler: Scheduler, sigmas: list[float]) -> list[float]:
    """DPM-Solver-2: every other evaluation at the interpolated sigma of the same entry."""
    half = _floats(scheduler.sigmas_interpol)
    return [half[i] if i % 2 else sigma for i, sigma in enumerate(sigmas)]


def _between_ancestral(scheduler: Scheduler, sigmas: list[float]) -> list[float]:
    """DPM-Solver-2 ancestral: the interpolated sigma is one entry earlier: it lies below sigma_down, not sigma_next."""
    half = _floats(scheduler.sigmas_interpol)
    return [half[i - 1] if i % 2 else sigma for i, sigma in enumerate(sigmas)]


def _middle(scheduler: Scheduler, sigmas: list[float]) -> list[float]:
    """DPM-Solver++ SDE: every other evaluation at the middle of the step in log sigma."""
    return [math.sqrt(sigmas[i - 1] * sigma) if i % 2 else sigma for i, sigma in enumerate(sigmas)]


def _single(scheduler: Scheduler, index: int, begin: int) -> tuple[int, int]:
    return index, 0


def _pairs(scheduler: Scheduler, index: int, begin: int) -> tuple[int, int]:
    return divmod(index, 2)


def _pndm(scheduler: Scheduler, index: int, begin: int) -> tuple[int, int]:
    # It counts its evaluations from wherever a run begins. Runge-Kutta warm-up: three steps of four evaluations.
    # Without it the first step is evaluated twice. The last step is the schedule's last, whatever came before.
    warmed = len(scheduler.prk_timesteps)

    def counted(evaluation: int) -> tuple[int, int]:
        if evaluation < warmed:
            return divmod(evaluation, 4)
        if warmed:
            return evaluation - warmed + warmed // 4, 0
        return max(0, evaluation - 1), int(evaluation == 1)

    last, _ = counted(len(scheduler.timesteps) - 1 - begin)
    step, evaluation = counted(index - begin)
    return scheduler.num_inference_steps - 1 - last + step, evaluation


def _orders(scheduler: Scheduler, index: int, begin: int) -> tuple[int, int]:
    # DPM-Solver, single step: orders 1, 2, ... make up one step, each of them from where that step began.
    orders = scheduler.order_list
    return orders[: index + 1].count(1) - 1, orders[index] - 1


def _following(scheduler: Scheduler, entries: list[int], index: int, begin: int) -> int:
    """Return the timestep of the next entry, to which the scheduler steps; -1 after the last one."""
    return entries[index + 1] if index + 1 < len(entries) else -1


def _ratio(scheduler: Scheduler) -> int:
    return int(scheduler.config.num_train_timesteps // scheduler.num_inference_steps)


def _by_ratio(scheduler: Scheduler, entries: list[int], index: int, begin: int) -> int:
    """Return the timestep T // n lower, to which the scheduler steps from an entry whatever the next entry is.

    The two differ with the spacing linspace, and with trailing where n does not divide T.
    """
    return entries[index] - _ratio(scheduler)


def _pndm_target(scheduler: Scheduler, entries: list[int], index: int, begin: int) -> int:
    """Return the timestep to which PNDM steps: T // n lower, but not at all evaluations of its warm-up.

    In a warm-up by Runge-Kutta the first of two evaluations goes half as far and the second stays. Without that warm-up
    the second evaluation of the run stays.
    """
    evaluation = index - begin
    if evaluation < len(scheduler.prk_timesteps):
        return entries[index] - (0 if evaluation % 2 else _ratio(scheduler) // 2)
    return entries[index] - (0 if evaluation == 1 else _ratio(scheduler))


@dataclass(frozen=True)
class Record:
    """Where one scheduler class keeps its levels.

    Args:
        scaling: from an entry of its sigmas to a level; None where it looks up ``alphas_cumprod`` by timestep instead.
        sigmas: the sigma of each evaluation, from ``scheduler.sigmas``.
        place: from the index of an entry of ``timesteps``, and that of the one with which the run begins, to (step,
            evaluation within the step).
        target: of the schedulers that look up ``alphas_cumprod``: the timestep that they step to from an entry, below 0
            at the end.
        final: and alpha_bar at the end.
        remembers: whether it keeps samples, or noise derived from samples, over more than one step. Predictions of x0
            do not count: they are true wherever the sample is moved.
    """

    scaling: Scaling | None
    sigmas: Callable[[Scheduler, list[float]], list[float]] = _each
    place: Callable[[Scheduler, int, int], tuple[int, int]] = _single
    target: Callable[[Scheduler, list[int], int, int], int] = _following
    final: Callable[[Scheduler], float] = lambda scheduler: 1.0
    remembers: Callable[[Scheduler], bool] = lambda scheduler: False


def _final_alpha(scheduler: Scheduler) -> float:
    return float(scheduler.final_alpha_cumprod)


def _final_of_lcm(scheduler: Scheduler) -> float:
    # Its last step draws noise too where the timesteps that it was given are not as many as it counts.
    if len(scheduler.timesteps) == scheduler.num_inference_steps:
        return 1.0
    return float(scheduler.alphas_cumprod[int(scheduler.timesteps[-1])])


def _always(scheduler: Scheduler) -> bool:
    return True


def _in_noise(scheduler: Scheduler) -> bool:
    return not str(option(scheduler, "algorithm_type")).endswith("++")


RECORDS: dict[str, Record] = {
    "DDIMScheduler": Record(None, target=_by_ratio, final=_final_alpha),
    "CogVideoXDDIMScheduler": Record(None, target=_by_ratio, final=_final_alpha),
    "CogVideoXDPMScheduler": Record(None, target=_by_ratio, final=_final_alpha),
    "DDPMScheduler": Record(None),
    "PNDMScheduler": Record(None, place=_pndm, target=_pndm_target, final=_final_alpha, remembers=_always),
    "LCMScheduler": Record(None, final=_final_of_lcm),
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
    """Return the names of the scheduler classes whose levels are known."""
    return tuple(sorted(RECORDS))


def _record(cls: type) -> tuple[str, Record]:
    # By name, so that importing this file does not import diffusers. A subclass that steps by its own code is another
    # scheduler, whose levels nobody has checked.
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


ROUNDING = 2.0**-8
"""Pipelines in bfloat16 hand their denoiser timesteps that are rounded to 8 bits."""


def entry(scheduler: Scheduler, told: Any, timestep: float | None = None) -> int:
    """Find the index in ``scheduler.timesteps`` at which a run begins, from the timestep of its first evaluation.

    A run of image-to-image begins midway, at an index above 0, and does not say at which.

    Args:
        scheduler: a diffusers scheduler after ``set_timesteps``.
        told: the timestep of the run's first evaluation: a number, or a tensor such as the loop took out of
            ``scheduler.timesteps``. A tensor need not be unique, since its place in memory shows which entry it is.
        timestep: the number, if `told` is what a pipeline made of it for its network.

    Raises:
        UnsupportedSchedulerError: there is no such entry, or several that cannot be told apart.

    Waits for the devices that hold the timesteps; call it once a run.
    """
    if timestep is None:
        timestep = float(told)
    entries = _floats(scheduler.timesteps)
    away = [abs(entry - timestep) for entry in entries]
    if min(away) > ROUNDING * abs(timestep):
        raise UnsupportedSchedulerError(f"timestep {timestep:g} is not on the scheduler's schedule {entries}")
    found = [index for index, distance in enumerate(away) if distance == min(away)]
    if len(found) == 1:
        return found[0]
    if hasattr(scheduler, "index_for_timestep"):
        return found[1]  # where the scheduler itself takes up a run
    if (place := _place_in_memory(scheduler.timesteps, told)) in found:
        return place
    raise UnsupportedSchedulerError(
        f"timestep {timestep:g} stands {len(found)} times in the schedule of {type(scheduler).__name__}, and with "
        "which of them the run begins is not known; take the timesteps of the loop out of scheduler.timesteps as they "
        "are, or use another scheduler, such as DDIM"
    )


def _place_in_memory(entries: Any, told: Any) -> int:
    """Return the index of the entry of `entries` that shares its memory with `told`; -1 if none does."""
    if not hasattr(told, "untyped_storage") or told.dtype != entries.dtype:
        return -1
    if told.untyped_storage().data_ptr() != entries.untyped_storage().data_ptr():
        return -1
    return int((told.storage_offset() - entries.storage_offset()) // entries.stride(0))


def grid(scheduler: Scheduler, begin: int = 0) -> Grid:
    """Return the level of every evaluation of a run, and the level of the sample that the scheduler returns there.

    Args:
        scheduler: a diffusers scheduler after ``set_timesteps``.
        begin: index of the entry of ``timesteps`` with which the run begins, as `entry` finds it. The points before it
            belong to no run.

    Raises:
        UnsupportedSchedulerError: its levels are not known or not on its path, or its timesteps are not set.

    Waits once for the device that holds the timesteps; call it once a run.
    """
    _, record = _record(type(scheduler))
    if not _is_set(scheduler):
        raise UnsupportedSchedulerError(f"{type(scheduler).__name__} has no timesteps yet; call set_timesteps first")
    timesteps = _floats(scheduler.timesteps)
    if record.scaling is None:
        entries, table = list(map(int, timesteps)), _floats(scheduler.alphas_cumprod)
        levels = [Level.vp(table[entry]) for entry in entries]
        targets = [record.target(scheduler, entries, index, begin) for index in range(len(entries))]
        returned = [Level.vp(table[target] if target >= 0 else record.final(scheduler)) for target in targets]
    else:
        sigmas = _floats(scheduler.sigmas)
        levels = [record.scaling(scheduler, sigma) for sigma in record.sigmas(scheduler, sigmas)[: len(timesteps)]]
        # Not the last entry: Euler's log_linear interpolation makes one sigma more than it steps to.
        returned = [*levels[1:], record.scaling(scheduler, sigmas[len(timesteps)])]
    # EDM schedulers count in log sigma or in its angle.
    training = None if option(scheduler, "sigma_data") is not None else scheduler.config.num_train_timesteps
    points = [
        Point(
            *record.place(scheduler, index, begin),
            level,
            training and timestep / training,
            timestep=timestep,
            returned=after,
        )
        for index, (timestep, level, after) in enumerate(zip(timesteps, levels, returned, strict=True))
    ]
    return Grid(tuple(points))


def remembers(scheduler: Scheduler) -> bool:
    """Whether `scheduler` keeps samples, or noise derived from samples, over more than one step."""
    return _record(type(scheduler))[1].remembers(scheduler)


_EMITTED = {"epsilon": EPSILON, "sample": X0, "v_prediction": V, "flow_prediction": FLOW}


def parameterization(scheduler: Scheduler) -> Parameterization:
    """Return what a network that runs under `scheduler` emits, from the scheduler's configuration.

    Args:
        scheduler: a diffusers scheduler.

    Raises:
        UnsupportedSchedulerError: the scheduler or its `prediction_type` is not known, or contradicts its sigmas.
    """
    return emission(type(scheduler), scheduler.config)


def emission(cls: type, config: Any) -> Parameterization:
    """What a network emits that runs under a class of schedulers with a configuration, without making a scheduler.

    Raises:
        UnsupportedSchedulerError: as `parameterization`.
    """
    name, _ = _record(cls)
    if name.startswith("FlowMatch"):
        return FLOW.negated() if _own(cls, config, "invert_sigmas") else FLOW
    emitted, data = config.get("prediction_type"), _own(cls, config, "sigma_data")
    if data is not None:  # EDM's preconditioning
        names: Sequence[str] = ("epsilon", "v_prediction")
        if emitted in names:
            return Parameterization("edm" if emitted == "epsilon" else "edm-v", data)
    elif emitted in _EMITTED:
        flow = bool(_own(cls, config, "use_flow_sigmas"))
        if (emitted == "flow_prediction" and not flow) or (emitted == "v_prediction" and flow):
            # diffusers runs it, and reads x0 from the formula of one path with the sigmas of the other.
            raise UnsupportedSchedulerError(f"{name}: prediction_type {emitted!r} needs use_flow_sigmas={not flow}")
        return _EMITTED[emitted]
    raise UnsupportedSchedulerError(
        f"{name}: prediction_type {emitted!r} is not known{nearest(str(emitted), _EMITTED)}"
    )
