"""A plain sampling loop under a stack, for models that are not pipelines."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..guidance.errors import InputError, NonFiniteError
from ..guidance.fields import count
from ..guidance.keyed import Keys
from ..guidance.network import CallableNetwork, Denoiser
from ..guidance.notation.objectives import objectives as named_objectives
from ..guidance.notation.presets import as_stack
from ..guidance.objective import Decode, Encode
from ..guidance.observe import Observer
from ..guidance.plan import level_before
from ..guidance.prediction import Level, Parameterization
from ..guidance.report import Report
from ..guidance.rule import Rule
from ..guidance.run import GuidedRun
from ..guidance.step import Estimate, Run, Step
from .conditions import Conditions
from .grid import Point
from .identity import scheduler_identity
from .levels import grid, parameterization
from .lists import arguments, checked
from .moving import Beside, check_room, later
from .noise import check_seeds, generators, initial_noise, seeded, started
from .renoise import Renoising
from .stepping import Stepper


@dataclass(frozen=True)
class Sampled:
    """The samples of `sample` or `invert`, and the report of the run.

    Attributes:
        x: the samples, shape ``(B, ...)``.
        report: what was evaluated.
    """

    x: Tensor
    report: Report


@torch.no_grad()
def sample(
    model: Denoiser | Mapping[str, Denoiser],
    stack: Rule | str | Mapping[str, Any],
    scheduler: Any,
    *,
    conditions: Mapping[str, Any],
    shape: Sequence[int],
    seeds: Sequence[int],
    steps: int = 25,
    sigmas: Sequence[float] | None = None,
    timesteps: Sequence[int] | None = None,
    start: Tensor | None = None,
    emits: Parameterization | None = None,
    negatives: Sequence[int] | None = None,
    positives: Sequence[int] | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    max_rows: int | None = None,
    identity: Mapping[str, str] | None = None,
    observe: Observer | None = None,
    objectives: Mapping[str, Any] | None = None,
    decode: Decode | None = None,
    encode: Encode | None = None,
) -> Sampled:
    """Sample from a model under a stack.

    Args:
        model: ``model(x, level, conditions)`` returning a prediction shaped like x, where x is scaled as `level` says
            (``x = alpha*x0 + sigma*eps``); or several by name, ``"main"`` the one that samples.
        stack: a stack, a rule, or the text or mapping of one.
        scheduler: any supported diffusers scheduler; its `set_timesteps` is called.
        conditions: by name, ``"positive"`` at least: a tensor, or a mapping of tensors, with one row a sample. Where
            there is no ``"negative"``, that name means ``"negative:0"``, or ``"null"`` if that is not there either.
            ``"independent"`` is a function ``draw(generators)`` that returns such rows at random.
        shape: shape of one sample.
        seeds: one for each sample: sample i depends on its own seed alone.
        steps: steps of the scheduler, where neither of the next two is given.
        sigmas: noise levels instead, one for each step, falling: sigma/alpha, of flow models sigma before their shift.
            A 0 behind them may be left out. For schedulers that take some, or the training steps that are nearest.
        timesteps: training steps instead, one for each step, falling.
        start: the samples to begin with, shape ``(B, *shape)``, at the first level of the schedule, such as `invert`
            returns; by default noise from the seeds.
        emits: what the model emits; by default what the scheduler's configuration says, to which it must agree in any
            case, since the scheduler reads the same output.
        negatives: how many of the conditions ``"negative:0"``, ``"negative:1"``, ... each sample has; all by default.
        positives: how many of ``"positive:1"``, ... each sample has beside its prompt; all by default.
        dtype: type of x.
        device: where to sample.
        max_rows: at most this many rows in one call of the model.
        identity: what is known of the model, for rules that were fitted for one: ``{"model": name or fingerprint}``.
            The scheduler, its levels and whether there is a negative are added.
        observe: a function that is called after every evaluation; see `guidance.observe`.
        objectives: the objectives that rules steer by, by name: a function ``log f(x0) -> (B,)`` for a name of your
            own, for the name of a shipped objective the file that it takes; see `guidance.objective`.
        decode: from clean samples to pictures with values in [0, 1], for objectives that see pixels; by default these
            see the samples as they are.
        encode: from pictures to clean samples, beside `decode`, for rules that put a part of a picture into samples:
            `Replace`.

    Returns:
        The samples ``x``, shape ``(B, *shape)``, at the schedule's last level, and the ``report`` of the run.

    Cost: the evaluations that the stack asks for at each step; `guidance.plan` counts them beforehand.

    Raises:
        InputError: no ``"positive"`` condition, `emits` contradicts the scheduler, or it takes no such levels.
        UnsupportedSchedulerError: the scheduler's levels are not known.
        NonFiniteError: NaN or Inf in a sample; the error's `output` is what this returns, with the other samples.
        QueryError: the model cannot answer what the stack asks.
    """
    check_seeds(seeds)
    setup = Setup(model, scheduler, conditions, seeds, emits, negatives, positives)
    scheduler.set_timesteps(**_given(scheduler, steps, sigmas, timesteps), device=device)
    schedule = grid(scheduler)
    own = generators(seeds)
    x = initial_noise(shape, own, dtype=dtype, device=device) * float(getattr(scheduler, "init_noise_sigma", 1.0))
    x = started(x, start)
    stack = as_stack(stack)
    check_room(stack, scheduler)
    renoising = Renoising(scheduler, schedule, guides_history=stack.guides_history) if stack.renoises else None
    takes_generator = "generator" in inspect.signature(scheduler.step).parameters
    options: dict[str, Any] = {"generator": own} if takes_generator else {}
    known: dict[str, str] = {}
    if any(part.needs_identity for part in stack.parts()):
        given = "given" if setup.conditions.negative else "empty"
        known = {**scheduler_identity(scheduler, schedule), "negative": given, **(identity or {})}
    size = (x.shape[-2], x.shape[-1]) if decode is None and x.ndim == 4 else None
    about = Run(
        tuple(x.shape),
        dtype,
        x.device,
        schedule.steps,
        setup.seeds,
        *setup.counts,
        identity=known,
        emits=setup.emits,
        levels=schedule.levels,
        objectives=named_objectives(objectives, decode, size=size, encode=encode),
    )
    run, advance = GuidedRun(stack, about, max_rows, observe, moves=True), Stepper(scheduler)
    beside = Beside(scheduler, schedule)
    with seeded(scheduler, seeds):
        for position, (timestep, point) in enumerate(zip(scheduler.timesteps, schedule.points, strict=True)):
            if hasattr(scheduler, "scale_model_input"):
                scheduler.scale_model_input(x, timestep)  # where some schedulers find their place; models scale x
            between = schedule.reached(position), level_before(schedule.points, position)
            at = point.step, point.level, point.evaluation, point.time, *between
            x = run.moved(_Turns(setup, beside, position), x, run.step(*at))
            estimate = run.estimate(setup.network(x, point.level, setup.keys(point)), x, *at)
            told, handed = renoising.before(estimate, x) if renoising else (estimate.prediction.native, x)
            x = advance(told, timestep, handed, **options)
            x = renoising.after(x) if renoising else x
    return finished(run, run.ended(x, run.step(*at)))


def _given(
    scheduler: Any, steps: int, sigmas: Sequence[float] | None, timesteps: Sequence[int] | None
) -> Mapping[str, Any]:
    """Return the arguments of `set_timesteps`."""
    lists = [(kind, values) for kind, values in (("sigmas", sigmas), ("timesteps", timesteps)) if values is not None]
    if not lists:
        return {"num_inference_steps": count("steps", steps)}
    if len(lists) > 1:
        raise InputError("sigmas and timesteps are both given; leave one of them out")
    levels = checked(*lists[0])
    return arguments(scheduler, levels, len(levels.values))


class Setup:
    """The setup that `sample` and `invert` share: a model under conditions, as the network of each evaluation.

    Args:
        model: as in `sample`, and so are the others.
        scheduler: as in `sample`.
        conditions: as in `sample`.
        seeds: one for each sample.
        emits: as in `sample`.
        negatives: as in `sample`.
        positives: as in `sample`.

    Raises:
        InputError: no ``"positive"`` condition, `emits` contradicts the scheduler, or a number of conditions that there
            are not.
        UnsupportedSchedulerError: it is not known what the scheduler reads.
    """

    def __init__(
        self,
        model: Denoiser | Mapping[str, Denoiser],
        scheduler: Any,
        conditions: Mapping[str, Any],
        seeds: Sequence[int],
        emits: Parameterization | None,
        negatives: Sequence[int] | None,
        positives: Sequence[int] | None,
    ) -> None:
        self.emits = parameterization(scheduler)
        if emits is not None and emits != self.emits:
            raise InputError(
                f"the model emits {emits.name!r} but the scheduler reads {self.emits.name!r}; change its config"
            )
        self.models = model if isinstance(model, Mapping) else {"main": model}
        self.conditions, self.seeds, batch = Conditions.of(conditions), tuple(seeds), len(seeds)
        self.counts = (
            self.conditions.count("negative", batch, negatives),
            self.conditions.count("positive", batch, positives),
        )

    def network(self, x: Tensor, level: Level, keys: Keys) -> CallableNetwork:
        """The model at samples `x`, scaled as `level` says."""
        told = self.conditions
        return CallableNetwork(self.models, x, level, told.rows, self.emits, told.aliases, keys)

    def keys(self, point: Point) -> Keys:
        """Return the keys from which the random numbers of the evaluation at `point` are made."""
        return Keys(self.seeds, point.step, point.evaluation)


@dataclass(frozen=True)
class _Turns:
    """The `Loop` of `sample` for the turns of rules, at one evaluation."""

    setup: Setup
    beside: Beside
    position: int

    def network(self, x: Tensor, level: Level, keys: Keys) -> CallableNetwork:
        """The model at samples `x`, scaled as `level` says."""
        return self.setup.network(x, level, keys)

    def stepped(self, x: Tensor, estimate: Estimate, keys: Keys, ahead: int = 0) -> Tensor:
        """The samples after the scheduler's step from `x`."""
        return self.beside.step(x, estimate, self.position, keys, ahead)

    def later(self, step: Step, ahead: int) -> Step:
        """Return the run's position `ahead` steps later."""
        return later(step, self.beside.schedule, self.position + ahead)


def finished(run: GuidedRun, x: Tensor) -> Sampled:
    """The result of a run that ended with the samples `x`.

    Raises:
        NonFiniteError: some of them are NaN or Inf; its `output` is the result with all of them.
    """
    sampled = Sampled(x, run.report)
    try:
        run.finish()
    except NonFiniteError as error:
        error.output = sampled
        raise
    return sampled
