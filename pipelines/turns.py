"""Turns in a guided call: the evaluations of rules, and their changes of the samples, between a pipeline's steps.

The pipeline has made the arguments of its denoiser for the samples that its scheduler returned. A turn asks the
denoiser with other samples in their place, everything else as it is: what the pipeline computed from its samples
beforehand, such as the residuals of a ControlNet, stays that of the samples before the turns. The samples where the
turns ended are what the stack's estimate is made at, and what the scheduler is handed in place of the pipeline's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..guidance.errors import UnsupportedPipelineError
from ..guidance.keyed import Keys
from ..guidance.prediction import Level
from ..guidance.step import Estimate, Step
from ..samplers.levels import option
from ..samplers.moving import later
from .branch import Branch
from .network import PipelineNetwork
from .network_factory import NetworkFactory
from .steps import Steps


@dataclass
class Asked:
    """The calls that a pipeline made of its denoiser for one evaluation.

    Attributes:
        branches: the conditions that the pipeline evaluates, each with the call that has its rows.
        last: the last of these calls.
        answered: native outputs of conditions that were evaluated already, for all samples.
    """

    branches: Mapping[str, Branch]
    last: Branch
    answered: Mapping[str, Tensor] | None = None


class Turns:
    """The turns before one evaluation: a `Loop`.

    Args:
        steps: where the call stands.
        networks: what makes the networks.
        asked: the pipeline's calls.
        x: the samples that they were made for, shape ``(B, ...)``.
        part: where the samples are in what the denoiser is given and returns.

    Attributes:
        made: the networks of the looks so far, each with the calls that it answers in.
    """

    def __init__(
        self, steps: Steps, networks: NetworkFactory, asked: Asked, x: Tensor, part: tuple[slice, ...]
    ) -> None:
        self.steps, self.networks, self.asked, self.x, self.part = steps, networks, asked, x, part
        self.made: list[tuple[PipelineNetwork, Asked]] = []

    def network(self, x: Tensor, level: Level, keys: Keys) -> PipelineNetwork:
        """The denoiser at samples `x`.

        Raises:
            UnsupportedPipelineError: at another level than that of the pipeline's call, and it is no flow model's.
        """
        asked = self.at(x, level)
        network = self.networks.made(asked.branches, asked.last, len(x), (keys,), self.part, asked.answered)
        self.made.append((network, asked))
        return network

    def at(self, x: Tensor, level: Level | None = None) -> Asked:
        """The pipeline's calls with samples `x` in the place of its own; at their level by default."""
        later, position = (0.0, None) if level in (None, self.steps.point.level) else self._later(level)
        if x is self.x and not later:
            return self.asked
        given = self.steps.scaled(x, position)
        moved = {id(one): self._at(one, given, later) for one in self.asked.branches.values()}
        branches = {name: moved[id(one)] for name, one in self.asked.branches.items()}
        return Asked(branches, moved[id(self.asked.last)])

    def _later(self, level: Level) -> tuple[float, int | None]:
        """Return the change of the denoiser's time argument at `level`, in its own unit, and the point of the schedule.

        The point is that of `level` if the scheduler scales the samples for the denoiser.

        Raises:
            UnsupportedPipelineError: it is not known.
        """
        pipe, family, point = self.steps.pipe, self.steps.family, self.steps.point
        told = self.asked.last.arguments[family.timestep]
        count = float(pipe.scheduler.config.num_train_timesteps)

        def time(level: Level) -> float:
            return count * (1 - level.sigma if option(pipe.scheduler, "invert_sigmas") else level.sigma)

        unit = family.clock(pipe, 1.0) - family.clock(pipe, 0.0)
        if isinstance(told, Tensor) and told.ndim > 1:
            raise UnsupportedPipelineError(
                f"{self.steps.stack} asks the network at another noise level than the step's, and "
                f"{type(pipe).__name__} gives its network a time for each token; run it in guidestack.sample"
            )
        if level.path == "flow" and self.steps.x is None and abs(time(point.level) - point.timestep) < 1:
            return (time(level) - point.timestep) / unit, None
        for position, other in enumerate(self.steps.grid.points):
            if other.level == level:
                later = (other.timestep - point.timestep) / unit
                whole = isinstance(told, Tensor) and not told.is_floating_point()
                return round(later) if whole else later, position
        raise UnsupportedPipelineError(
            f"{self.steps.stack} asks the network at a noise level that is none of the sampler's, and what "
            f"{type(pipe).__name__} gives its network there is not known; run it in guidestack.sample"
        )

    def _at(self, branch: Branch, given: Tensor, later: float) -> Branch:
        sample = branch.sample.clone()
        sample[(slice(None), *self.part)] = torch.cat([given] * (len(sample) // len(given))).to(sample.dtype)
        return branch.at(sample, later)

    @property
    def output(self) -> tuple[Any, Tensor | None]:
        """Return the denoiser's last output in a turn, and its whole answer to the prompt if that is more."""
        asked = [(asked.last.output, network.whole) for network, asked in self.made if asked.last.output is not None]
        return asked[-1] if asked else (None, None)

    def stepped(self, x: Tensor, estimate: Estimate, keys: Keys, ahead: int = 0) -> Tensor:
        """The samples after the scheduler's step from `x`."""
        return self.steps.beside(x, estimate, keys, self.asked.last.arguments, ahead)

    def later(self, step: Step, ahead: int) -> Step:
        """Return the run's position `ahead` steps later."""
        return later(step, self.steps.grid, self.steps.position + ahead)
