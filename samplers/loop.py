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
from ..guidance.notation.presets import as_stack
from ..guidance.observe import Observer
from ..guidance.prediction import Parameterization
from ..guidance.report import Report
from ..guidance.rule import Rule, Run
from ..guidance.rules.icg import SOURCES
from ..guidance.run import GuidedRun
from .identity import scheduler_identity
from .levels import grid, parameterization
from .noise import generators, initial_noise, seeded
from .renoise import Renoising
from .stepping import Stepper


@dataclass(frozen=True)
class Sampled:
    """Result of `sample`.

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
    start: Tensor | None = None,
    emits: Parameterization | None = None,
    negatives: Sequence[int] | None = None,
    positives: Sequence[int] | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    max_rows: int | None = None,
    identity: Mapping[str, str] | None = None,
    observe: Observer | None = None,
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
        seeds: one a sample: sample i depends on its own seed alone.
        steps: steps of the scheduler.
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
        observe: told of every evaluation, such as `evaluation.traces.strength`.

    Raises:
        InputError: no ``"positive"`` condition, or `emits` contradicts the scheduler.
        UnsupportedSchedulerError: the scheduler's levels are not known.
        NonFiniteError: NaN or Inf in a sample; the error's `output` is what this returns, with the other samples.
        QueryError: the model cannot answer what the stack asks.
    """
    expected = parameterization(scheduler)
    if emits is not None and emits != expected:
        raise InputError(f"the model emits {emits.name!r} but the scheduler reads {expected.name!r}; change its config")
    if "positive" not in conditions:
        raise InputError(f"conditions need 'positive'; got {sorted(conditions)}")
    models = model if isinstance(model, Mapping) else {"main": model}
    steps, batch = count("steps", steps), len(seeds)
    if not batch:
        raise InputError("seeds is empty, and there is nothing to make; give one a sample")
    counts = (_counts("negative", negatives, conditions, batch), _counts("positive", positives, conditions, batch))
    aliases = _aliases(conditions)
    # In the order of the field, [unconditional, conditional]: a product's last bit can depend on the rows' order.
    ordered = dict(sorted(conditions.items(), key=lambda item: item[0] == "positive"))

    scheduler.set_timesteps(steps, device=device)
    schedule = grid(scheduler)
    own = generators(seeds)
    x = initial_noise(shape, own, dtype=dtype, device=device) * float(getattr(scheduler, "init_noise_sigma", 1.0))
    if start is not None:
        if start.shape != x.shape:
            raise InputError(f"start has shape {tuple(start.shape)}, expected {tuple(x.shape)}")
        x = start.to(x)
    stack = as_stack(stack)
    renoising = Renoising(scheduler, schedule, guides_history=stack.guides_history) if stack.renoises else None
    takes_generator = "generator" in inspect.signature(scheduler.step).parameters
    options: dict[str, Any] = {"generator": own} if takes_generator else {}
    known: dict[str, str] = {}
    if any(part.needs_identity for part in stack.parts()):
        given = "given" if {"negative", "negative:0"} & set(conditions) else "empty"
        known = {**scheduler_identity(scheduler, schedule), "negative": given, **(identity or {})}
    about = Run(tuple(x.shape), dtype, x.device, schedule.steps, tuple(seeds), *counts, identity=known)
    run, advance = GuidedRun(stack, about, max_rows, observe), Stepper(scheduler)
    with seeded(scheduler, seeds):
        for position, (timestep, point) in enumerate(zip(scheduler.timesteps, schedule.points, strict=True)):
            if hasattr(scheduler, "scale_model_input"):
                scheduler.scale_model_input(x, timestep)  # where some schedulers find their place; models scale x
            keys = Keys(tuple(seeds), point.step, point.evaluation)
            network = CallableNetwork(models, x, point.level, ordered, expected, aliases, keys)
            reached = schedule.reached(position)
            estimate = run.estimate(network, x, point.step, point.level, point.evaluation, point.time, reached)
            told, at = renoising.before(estimate, x) if renoising else (estimate.prediction.native, x)
            x = advance(told, timestep, at, **options)
            x = renoising.after(x) if renoising else x
    return finished(run, x)


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


def _counts(kind: str, given: Sequence[int] | None, conditions: Mapping[str, Any], batch: int) -> tuple[int, ...]:
    """How many numbered conditions of a kind each sample has."""
    here = sum(name.startswith(f"{kind}:") for name in conditions)
    here = max(here, kind == "negative" and "negative" in conditions)
    if given is None:
        return (here,) * batch
    if len(given) != batch or max(given) > here or min(given) < 0:
        raise InputError(f"expected the number of {kind} conditions of {batch} samples, 0 to {here} each; got {given}")
    return tuple(given)


def _aliases(conditions: Mapping[str, Any]) -> dict[str, str]:
    """Names that stand for other conditions."""
    aliases = {}
    if "negative" not in conditions:
        aliases["negative"] = "negative:0" if "negative:0" in conditions else "null"
    elif "negative:0" not in conditions:
        aliases["negative:0"] = "negative"
    if "independent" in conditions:
        aliases |= {f"independent:{source}": "independent" for source in SOURCES}
    return aliases
