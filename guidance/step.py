"""Run, Step, Estimate and State: what a rule knows of the run, the estimate it improves, and what it remembers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from .prediction import Level, Parameterization, Prediction, Space

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    from .objective import Objectives

    StateT = TypeVar("StateT", bound=tuple[Any, ...], default=Any)
else:  # defaults of type variables came with Python 3.13, and only type checkers look at them
    from typing import TypeVar

    StateT = TypeVar("StateT")

State = tuple[Any, ...]
"""What a rule remembers between evaluations: a NamedTuple of tensors, or ``()``."""


@dataclass(frozen=True)
class Run:
    """What is known of a run before its first step: shapes, steps, seeds, numbers of prompts.

    Args:
        shape: shape of x, batch first.
        dtype: type of the network's outputs.
        device: where they are.
        steps: steps of the scheduler's whole schedule.
        seeds: one number for each sample, from which all randomness of the run is derived; empty if none was given.
        negatives: how many negative prompts each sample has, which answer ``"negative:0"`` and on; empty if it is 1.
        positives: how many positives each sample has beside its prompt, ``"positive:1"`` and on; empty if none has any.
        identity: what a fitted rule must match, by name: the model's fingerprint, the scheduler, ... Filled if a rule
            has `needs_identity`; None in a plan, in which nothing runs. A value that is None is not known yet, and is
            not checked.
        emits: what the network emits; None where it is not known, as in a plan.
        latents: whether samples are latents of an autoencoder; None where it is not known.
        levels: the level at the beginning of each step of the schedule, and behind them the one at its end; empty where
            it is not known beforehand.
        objectives: the objectives that rules may steer by; None if there are none, as in a plan.
        told: a number for each sample, equal for samples with equal conditions; empty if it is not known or no rule
            couples samples.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    steps: int = 1
    seeds: tuple[int, ...] = ()
    negatives: tuple[int, ...] = ()
    positives: tuple[int, ...] = ()
    identity: Mapping[str, str | None] | None = field(default_factory=dict)
    emits: Parameterization | None = None
    latents: bool | None = None
    levels: tuple[Level, ...] = ()
    objectives: Objectives | None = None
    told: tuple[int, ...] = ()

    @property
    def batch(self) -> int:
        """Number of samples B."""
        return self.shape[0]

    def mask(self, samples: Iterable[bool]) -> Tensor:
        """A row mask of these booleans, kept on the host, where it is read without waiting for a device."""
        return torch.tensor(list(samples), dtype=torch.bool)


@dataclass(frozen=True)
class Step:
    """The position of a run at one evaluation: step, noise level, time.

    Args:
        run: the run.
        index: step of the sampler, 0 <= index < run.steps. Image-to-image starts in the middle.
        level: level of the samples at this evaluation.
        evaluation: 0 for the first evaluation of a step; solvers such as Heun's have a second one.
        step_level: level at the first evaluation of this step.
        time: the network's time as a share of its training schedule, t/T in [0, 1]; None where the sampler has none.
        before: level at which the step before began; None at the first step of a run, and where it is not known.
        after: level that the step leads to; None where it is not known.
        turn: 0 for the sampler's own evaluation; 1, 2, ... for the turns that a rule takes before it, see `Rule.turns`.
    """

    run: Run
    index: int
    level: Level
    evaluation: int = 0
    step_level: Level | None = None
    time: float | None = None
    before: Level | None = None
    after: Level | None = None
    turn: int = 0

    @property
    def progress(self) -> float:
        """``index / steps``, in [0, 1): the share of the schedule that is done when the step begins."""
        return self.index / self.run.steps


@dataclass(frozen=True, eq=False)
class Estimate:
    """The prediction that the sampler steps with, and optionally another one that it re-noises with.

    Args:
        prediction: the prediction whose clean sample the sampler steps towards.
        renoise: the prediction whose noise it re-noises with; None for that of `prediction`.
        traces: numbers worth reporting, by name: one for each sample, shape ``(B,)``, left on their device.
    """

    prediction: Prediction
    renoise: Prediction | None = None
    traces: Mapping[str, Tensor] = field(default_factory=dict)

    def read(self, space: Space | Literal["any"]) -> Tensor:
        """The prediction in `space`; see `Prediction.read`."""
        return self.prediction.read(space)

    def replace(self, space: Space | Literal["any"], value: Tensor, **traces: Tensor) -> Estimate:
        """The estimate whose prediction reads `value` in `space`, with `traces` added."""
        return Estimate(self.prediction.replace(space, value), self.renoise, {**self.traces, **traces})

    def plus(
        self, space: Space, change: Tensor, weight: float, factor: Tensor | None = None, **traces: Tensor
    ) -> Estimate:
        """The estimate with a change added in `space`, see `Prediction.plus`, and with `traces` added."""
        prediction = self.prediction.plus(space, change, weight, factor)
        return Estimate(prediction, self.renoise, {**self.traces, **traces})

    def is_base(self, prompt: Prediction) -> bool:
        """Whether the estimate is still the prompt's own prediction, which no rule has improved yet."""
        return self.prediction is prompt

    def detached(self) -> Estimate:
        """The estimate without the graph of gradients behind it."""
        traces = {name: value.detach() for name, value in self.traces.items()}
        return Estimate(self.prediction.detached(), self.renoise and self.renoise.detached(), traces)

    def pulled_back(self, slope: Tensor) -> Tensor:
        """Convert a gradient at the estimate's clean sample to one at x, through the denoiser.

        Only in `update` of a rule that `differentiates`, at a step where it does.

        Args:
            slope: the gradient of a function of the clean sample, shape ``(B, ...)``.

        Cost: a backward pass of every network evaluation behind the estimate.
        """
        denoised = self.read("denoised")
        # Kept: a second rule of the stack may go through the same evaluations.
        (found,) = torch.autograd.grad(denoised, self.prediction.x, slope.to(denoised.dtype), retain_graph=True)
        return found

    def without_traces(self) -> Estimate:
        """Return the estimate without traces."""
        return Estimate(self.prediction, self.renoise) if self.traces else self

    def where(self, samples: Tensor, other: Estimate) -> Estimate:
        """Take this estimate for `samples`, booleans of shape ``(B,)``, `other` for the rest; traces are both's."""
        renoise = None
        if self.renoise is not None or other.renoise is not None:
            renoise = (self.renoise or self.prediction).where(samples, other.renoise or other.prediction)
        return Estimate(self.prediction.where(samples, other.prediction), renoise, {**other.traces, **self.traces})
