r"""The density of data under a model, by the probability-flow ODE and the divergence along it.

The probability flow of a model carries noise to samples and back, without fresh noise on the way (Song et al. 2021).
With :math:`x = \alpha x_0 + \sigma\epsilon` and :math:`k = \sigma/\alpha` the noise level it is

.. math:: \frac{dx}{d\log k} = \alpha\sigma\, v(x),\quad v = \alpha\epsilon - \sigma x_0\qquad(\alpha^2+\sigma^2 = 1)

.. math:: \frac{dx}{d\sigma} = v(x),\quad v = \epsilon - x_0 \qquad (\text{the flow path},\ \alpha + \sigma = 1)

where :math:`\epsilon` and :math:`x_0` are read from a prediction at x. Along it, f the right side and u its variable,

.. math:: \log p(x_0) = \log N(x_1; 0, I) + \int_0^1 \operatorname{tr}\frac{\partial f}{\partial x}\,du.

The equation holds for whatever answers: with a model's own prediction p is the model's law, with the estimate of a
stack the law of the samples that a deterministic sampler makes under that stack, in the limit of many steps. That of
CFG is not the powered law.

The trace is exact, by a backward pass for each dimension, or the estimate of Hutchinson:
:math:`z^\top \partial f/\partial x\, z` with random signs z, held for the whole way. The solver is the
Runge-Kutta pair of Dormand and Prince (scipy's RK45), for each sample by itself: its steps depend on no other one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..guidance.errors import CompositionError, InputError, NonFiniteError, UnsupportedSchedulerError, shown
from ..guidance.fields import count, is_number
from ..guidance.keyed import Keys, keyed
from ..guidance.move import turning
from ..guidance.network import Denoiser
from ..guidance.notation.presets import as_stack
from ..guidance.objective import check_recording
from ..guidance.plan import SHAPE, holds, remembering
from ..guidance.prediction import Level, Parameterization, Prediction
from ..guidance.query import POSITIVE, Network, evaluate
from ..guidance.rule import Rule, Stack
from ..guidance.step import Estimate, Run, Step
from .levels import option, parameterization
from .loop import Setup
from .noise import one_each

EXACT = 0
"""The number of probes that means the exact trace."""
MOST = 4096  # dimensions of which an exact trace is taken
MOST_PROBES = 1000
TOLERANCE = 1e-3
Field = Callable[[Tensor, Level], tuple[Prediction, int]]
"""Functions from samples and a level to the estimate, with its graph of gradients if recorded, and its evaluations."""


@dataclass(frozen=True, eq=False)
class Likelihood:
    """Log densities of data, and the noise at which their probability flow ends.

    Attributes:
        nats: log p of each sample in nats, shape ``(B,)``, float64.
        error: the standard error of the trace's estimate in nats, shape ``(B,)``: from the spread of the probes; 0 for
            an exact trace, NaN with one probe. The solver's own error comes on top.
        noise: each sample at the end of the flow, shape ``(B, ...)``; standard normal if the data follow the model.
        evaluations: network evaluations of each sample.
    """

    nats: Tensor
    error: Tensor
    noise: Tensor
    evaluations: tuple[int, ...]

    def bits(self, offset: float = 0.0) -> Tensor:
        r"""Bits per dimension, :math:`-\log p / (D \log 2)` + `offset`, shape ``(B,)``: less is more likely.

        Args:
            offset: what converts a density to the probability of whole numbers: for pictures of 256 values, with
                uniform noise of one step added, 8 if they are scaled to [0, 1] and 7 if to [-1, 1]; 0 for latents,
                whose density is in their own unit and may be above 1.
        """
        return -self.nats / (self.dimensions * math.log(2)) + offset

    @property
    def dimensions(self) -> int:
        """The dimensions D of one sample: how many numbers it has."""
        return self.noise[0].numel()


@torch.no_grad()
def likelihood(
    model: Denoiser | Mapping[str, Denoiser],
    stack: Rule | str | Mapping[str, Any],
    scheduler: Any,
    x0: Tensor,
    *,
    conditions: Mapping[str, Any],
    seeds: Sequence[int] | None = None,
    probes: int = 2,
    tolerance: float = TOLERANCE,
    sigmas: tuple[float, float] | None = None,
    emits: Parameterization | None = None,
    negatives: Sequence[int] | None = None,
    positives: Sequence[int] | None = None,
) -> Likelihood:
    """Compute the log density of data under a model and a stack, along the probability flow.

    Args:
        model: as in `sample`; gradients go through it.
        stack: a stack, a rule, or the text or mapping of one. Its rules must not remember, take turns, re-noise, go by
            the sampler's steps, or steer by objectives.
        scheduler: any supported scheduler: it says what the model emits, and between which levels it was trained.
        x0: the data, shape ``(B, ...)``.
        conditions: as in `sample`: the condition under which the density is computed, such as a prompt.
        seeds: one for each sample, for the probes and for rules that draw random numbers, which draw them once; 0, 1,
            ... by default.
        probes: the number of probes of Hutchinson's estimator; 0 for the exact trace.
        tolerance: relative and absolute tolerance of the solver, above 0.
        sigmas: the noise levels sigma/alpha between which the flow is followed (sigma of flow models, at most 1); by
            default those of the scheduler's training. What comes out is the density of the data with the noise of the
            lower one.
        emits: as in `sample`.
        negatives: as in `sample`.
        positives: as in `sample`.

    Raises:
        InputError: no ``"positive"`` condition, numbers out of range, or scipy is not installed.
        CompositionError: a rule does what the flow does not allow; see `stack`.
        UnsupportedSchedulerError: the levels of the scheduler's training are not known.
        NonFiniteError: the model's answer is NaN or Inf, or the solver cannot go on.
        QueryError: the model cannot answer what the stack asks.

    Cost: what the stack asks for, at some 50 to 100 places for each sample at the default tolerance, with a backward
    pass for each probe or, exactly, for each dimension.
    """
    stack = as_stack(stack)
    check_anywhere(stack)
    seeds = one_each(seeds, len(x0))
    about = model, stack, scheduler, conditions, emits, negatives, positives
    return joined(
        [
            followed(field, x0[[place]], reach(scheduler, sigmas), seed, probes, tolerance)
            for place, (seed, field) in enumerate(flows(x0, seeds, *about))
        ]
    )


def flows(
    x: Tensor,
    seeds: Sequence[int],
    model: Denoiser | Mapping[str, Denoiser],
    stack: Stack,
    scheduler: Any,
    conditions: Mapping[str, Any],
    emits: Parameterization | None,
    negatives: Sequence[int] | None,
    positives: Sequence[int] | None,
) -> Iterator[tuple[int, Flow]]:
    """Iterate over the samples' seeds, each with the flow of that sample alone.

    Args:
        x: samples of the shape and type that the flows are for, shape ``(B, ...)``.
        seeds: one for each sample.
        model: as in `likelihood`.
        stack: as in `likelihood`.
        scheduler: as in `likelihood`.
        conditions: as in `likelihood`.
        emits: as in `likelihood`.
        negatives: as in `likelihood`.
        positives: as in `likelihood`.
    """
    for place, seed in enumerate(seeds):
        one = {name: _row(value, place) for name, value in conditions.items()}
        told = [each and each[place : place + 1] for each in (negatives, positives)]
        setup = Setup(model, scheduler, one, [seed], emits, *told)
        about = Run((1, *x.shape[1:]), x.dtype, x.device, 1, (seed,), *setup.counts, emits=setup.emits)
        yield seed, Flow(stack, about, partial(setup.network, keys=Keys((seed,))))


def _row(value: Any, place: int) -> Any:
    """Return one row of a condition."""
    if isinstance(value, Tensor):
        return value[place : place + 1]
    if isinstance(value, Mapping):
        return {name: _row(one, place) for name, one in value.items()}
    return value


def joined(found: Sequence[Likelihood]) -> Likelihood:
    """Join the likelihoods of single samples to those of a batch."""
    evaluations = tuple(count for one in found for count in one.evaluations)
    nats, error, noise = (torch.cat([getattr(one, name) for one in found]) for name in ("nats", "error", "noise"))
    return Likelihood(nats, error, noise, evaluations)


@dataclass(frozen=True)
class Reach:
    """The two noise levels between which a flow is integrated.

    Args:
        low: the noise level at the data, sigma/alpha, or the sigma of a flow.
        high: that at the noise.
        flow: whether they are on the flow path.
    """

    low: float
    high: float
    flow: bool

    def at(self, u: float) -> Level:
        """Return the level at the flow's variable u: sigma for flow models, else log(sigma/alpha)."""
        if self.flow:
            return Level.flow(min(u, 1.0))
        k = math.exp(u)
        alpha = 1 / math.hypot(1, k)
        return Level(alpha, k * alpha)

    @property
    def ends(self) -> tuple[float, float]:
        """The values of the variable u at the data and at the noise."""
        return (self.low, self.high) if self.flow else (math.log(self.low), math.log(self.high))

    def speed(self, level: Level) -> float:
        """Return the factor that makes a velocity a derivative with respect to the variable u."""
        return 1.0 if self.flow else level.alpha * level.sigma


def reach(scheduler: Any, sigmas: tuple[float, float] | None = None) -> Reach:
    """Return the levels between which a scheduler's network was trained, or the given ones.

    Args:
        scheduler: any supported scheduler.
        sigmas: the lower and the higher noise level instead.

    Raises:
        InputError: `sigmas` are no such levels.
        UnsupportedSchedulerError: the levels of the training are not known.
    """
    flow = parameterization(scheduler).name == "flow"
    if sigmas is not None:
        ends = tuple(sigmas) if isinstance(sigmas, tuple | list) else ()
        good = len(ends) == 2 and all(map(is_number, ends)) and 0 < ends[0] < ends[1]
        if not good or (flow and ends[1] > 1):
            bounds = "0 < low < high <= 1 of a flow" if flow else "0 < low < high"
            raise InputError(f"sigmas are two noise levels, {bounds}; got {shown(sigmas)}")
        return Reach(float(ends[0]), float(ends[1]), flow)
    if flow:
        return Reach(1 / scheduler.config.num_train_timesteps, 1.0, True)
    if option(scheduler, "sigma_data") is not None:
        return Reach(float(scheduler.config.sigma_min), float(scheduler.config.sigma_max), False)
    known = [k for k in _trained(scheduler) if k < math.inf]
    return Reach(known[0], known[-1], False)


def _trained(scheduler: Any) -> list[float]:
    """Return the noise levels sigma/alpha of the training's timesteps, in rising order.

    Raises:
        UnsupportedSchedulerError: there is no table of them.
    """
    table = getattr(scheduler, "alphas_cumprod", None)
    if table is None:
        raise UnsupportedSchedulerError(
            f"{type(scheduler).__name__} has no table of the levels of its training; give sigmas=(low, high), or a "
            "scheduler with one, such as DDIMScheduler"
        )
    return [math.sqrt((1 - one) / one) if one > 0 else math.inf for one in table.double().tolist()]


def clock(scheduler: Any) -> Callable[[Level], float]:
    """Return a function from a level to the timestep at which a network was trained for it, a fraction if need be.

    Raises:
        UnsupportedSchedulerError: it is not known.
    """
    if parameterization(scheduler).name == "flow":
        count = float(scheduler.config.num_train_timesteps)
        turned = bool(option(scheduler, "invert_sigmas"))
        return lambda level: count * (1 - level.sigma if turned else level.sigma)
    if option(scheduler, "sigma_data") is not None:
        raise UnsupportedSchedulerError(f"what {type(scheduler).__name__} gives its network is not a training timestep")
    logs = [math.log(k) for k in _trained(scheduler)]
    return lambda level: float(np.interp(math.log(level.k_sigma), logs, range(len(logs))))


def check_anywhere(stack: Stack) -> None:
    """Refuse a stack whose estimate is not a differentiable function of the sample and the level alone.

    Raises:
        CompositionError: naming the rule.
    """
    if (move := turning(stack)) is not None:
        raise _refused(move, "evaluates and moves samples between two steps of a sampler")
    run = Run(SHAPE, identity=None)
    remembers = next((rule for rule in stack.rules if rule.whole_stack), None) or remembering(stack)
    for rule in stack.rules:
        if rule is remembers:
            why = REMEMBERS
        elif rule.renoises:
            why = "gives the sampler two predictions, one to step to and one to re-noise with"
        elif any(part.objectives for part in rule.parts()):
            why = "steers by an objective, whose curvature is not known here"
        else:
            try:
                rule.queries(Anywhere(run, 0, Level.vp(0.5)), rule.init(run))
            except CompositionError:
                why = "depends on the steps of a sampler"
            else:
                continue
        raise _refused(rule, why)


REMEMBERS = "remembers earlier steps of a run"


def _refused(rule: Rule, why: str) -> CompositionError:
    return CompositionError(
        f"{rule} {why}, which a probability flow does not allow: a rule there is a function of the sample and of its "
        "noise level alone, such as cfg(scale) or during(cfg(scale), sigma=(lo, hi))"
    )


class Anywhere(Step):
    """A noise level that belongs to no step of a sampler."""

    @property
    def index(self) -> int:
        """The index of the step, which a probability flow does not have.

        Raises:
            CompositionError: always; a rule that reads the index cannot be used.
        """
        raise CompositionError("a rule of the stack depends on the steps of a sampler, and a probability flow has none")

    @index.setter
    def index(self, value: int) -> None:
        pass


@dataclass(frozen=True, eq=False)
class Flow:
    """The estimate of a stack at any sample and level: a `Field`.

    Args:
        stack: one that `check_anywhere` admits.
        run: what is known of the run.
        network: makes the network that answers at samples and a level.
    """

    stack: Stack
    run: Run
    network: Callable[[Tensor, Level], Network]

    def __call__(self, x: Tensor, level: Level) -> tuple[Prediction, int]:
        """Return the stack's estimate at x, and the network evaluations that it took.

        Raises:
            CompositionError: a rule remembers what it saw, which it did not show before.
        """
        step = Anywhere(self.run, 0, level)
        state = self.stack.init(self.run)
        queries = self.stack.queries(step, state)
        done = evaluate(self.network(x, level), queries, x, level, edits=self.stack.edits(step, state))
        estimate, after = self.stack.update(Estimate(done.predictions[POSITIVE]), done.predictions, step, state)
        for rule, held in zip(self.stack.rules, after, strict=True):
            if holds(held):
                raise _refused(rule, REMEMBERS)
        return estimate.prediction, done.rows


def signs(seed: int, probes: int, shape: Sequence[int], like: Tensor) -> Tensor:
    """Return random signs from the seed, shape ``(probes, *shape)``, in the type and on the device of `like`."""
    generator = keyed(seed, "likelihood")
    drawn = torch.randint(2, (probes, *shape), generator=generator) * 2 - 1
    return drawn.to(like.device, like.dtype)


def followed(field: Field, x0: Tensor, reach: Reach, seed: int, probes: int, tolerance: float) -> Likelihood:
    """Compute the likelihood of one sample, along the flow from its data to noise.

    Args:
        field: the flow.
        x0: the sample, shape ``(1, ...)``.
        reach: between which levels.
        seed: of the probes.
        probes: how many; 0 for the exact trace.
        tolerance: of the solver.

    Raises:
        InputError: numbers out of range, or scipy is not installed.
        NonFiniteError: an answer is NaN or Inf, or the solver cannot go on.
    """
    probes, size = count("probes", probes, 0, MOST_PROBES), x0.numel()
    if probes == EXACT and size > MOST:
        raise InputError(f"an exact trace takes a backward pass for each of {size} dimensions; give probes=2")
    check_tolerance(tolerance)
    check_recording()
    exact = probes == EXACT
    evaluations = 0
    wanted = torch.eye(size).reshape(size, *x0.shape[1:]).to(x0) if exact else signs(seed, probes, x0.shape[1:], x0)

    def derivative(u: float, state: Any) -> Any:
        nonlocal evaluations
        level = reach.at(u)
        at = torch.from_numpy(state[:size]).reshape(x0.shape).to(x0)
        with torch.enable_grad():
            leaf = at.requires_grad_()
            estimate, price = field(leaf, level)
            speed, evaluations = reach.speed(level) * estimate.velocity, evaluations + price
            last = len(wanted) - 1
            parts = [
                torch.autograd.grad(speed, leaf, one[None].to(speed.dtype), retain_graph=place < last)[0] * one
                for place, one in enumerate(wanted)
            ]
        traces = torch.stack([part.double().sum() for part in parts])
        told = torch.cat([speed.detach().double().flatten(), traces.sum()[None] if exact else traces]).cpu().numpy()
        check_finite(told, "", level, "data to noise", 0)
        return told

    begin = reach.at(reach.ends[0])
    start = np.concatenate([(begin.alpha * x0).double().flatten().cpu().numpy(), np.zeros(probes or 1)])
    if not np.isfinite(start).all():
        raise NonFiniteError("NaN or Inf in the data themselves; give finite ones", (0,))
    end = solved(derivative, reach.ends, start, tolerance)
    noise, traces = end[:size], end[size:]
    prior = -0.5 * (noise.square().sum() + size * math.log(2 * math.pi))
    spread = traces.std() / math.sqrt(probes) if probes > 1 else torch.tensor(0.0 if exact else math.nan)
    nats = prior + traces.mean() + size * math.log(begin.alpha)
    return Likelihood(nats[None], spread.double()[None], noise.reshape(x0.shape).to(x0), (evaluations,))


def check_finite(found: Any, of: str, level: Level, way: str, place: int) -> None:
    """Check a derivative along the probability flow.

    Args:
        found: the derivative, an array.
        of: whose estimate it is made of, as messages say it; "" for that of the only sample.
        level: the noise level.
        way: from where to where the flow is followed.
        place: the index of the sample.

    Raises:
        NonFiniteError: a number of it is NaN or Inf.
    """
    if not np.isfinite(found).all():
        raise NonFiniteError(
            f"NaN or Inf in the estimate{of} at sigma/alpha {level.k_sigma:.4g}, on the way from {way}; try a wider "
            "dtype (float32), or sigmas=(low, high) between which the network was trained",
            (place,),
        )


def check_tolerance(tolerance: float) -> None:
    """Check that a number can be the tolerance of a solver.

    Raises:
        InputError: it is not above 0 and below 1.
    """
    if not is_number(tolerance) or not 0 < tolerance < 1:
        raise InputError(f"tolerance must be above 0 and below 1; got {shown(tolerance)}")


def solved(derivative: Callable[[float, Any], Any], ends: tuple[float, float], start: Any, tolerance: float) -> Tensor:
    """Solve a differential equation with scipy's RK45, and return the final state, in float64.

    Args:
        derivative: by the variable, given that and the state, a vector.
        ends: the variable at the beginning and at the end.
        start: the state at the beginning.
        tolerance: of the solver, relative and absolute.

    Raises:
        InputError: scipy is not installed.
        NonFiniteError: the solver cannot go on.
    """
    try:
        from scipy.integrate import solve_ivp
    except ImportError as error:
        raise InputError(
            "the probability flow needs the package scipy, which is not installed; run: "
            "pip install 'guidestack[schedulers]'"
        ) from error
    found = solve_ivp(derivative, ends, start, method="RK45", rtol=tolerance, atol=tolerance, t_eval=ends[1:])
    if not found.success:
        raise NonFiniteError(f"the flow could not be followed to the end: {found.message}", (0,))
    return torch.from_numpy(found.y[:, -1])
