"""Turns in a guided call: what rules evaluate, and where they move the samples, between two steps of a pipeline.

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
from ..guidance.step import Estimate
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
            UnsupportedPipelineError: at another level than that of the pipeline's call.
        """
        if level != self.steps.point.level:
            raise UnsupportedPipelineError(
                f"{self.steps.stack} asks the network at another noise level than that of the step, for which "
                f"{type(self.steps.pipe).__name__} made no arguments; it runs in guidestack.sample"
            )
        asked = self.at(x)
        network = self.networks.made(asked.branches, asked.last, len(x), (keys,), self.part, asked.answered)
        self.made.append((network, asked))
        return network

    def at(self, x: Tensor) -> Asked:
        """The pipeline's calls with samples `x` in the place of its own."""
        if x is self.x:
            return self.asked
        given = self.steps.scaled(x)
        moved = {id(one): self._at(one, given) for one in self.asked.branches.values()}
        branches = {name: moved[id(one)] for name, one in self.asked.branches.items()}
        return Asked(branches, moved[id(self.asked.last)])

    def _at(self, branch: Branch, given: Tensor) -> Branch:
        sample = branch.sample.clone()
        sample[(slice(None), *self.part)] = torch.cat([given] * (len(sample) // len(given))).to(sample.dtype)
        return branch.at(sample)

    @property
    def output(self) -> tuple[Any, Tensor | None]:
        """What the denoiser returned last in a turn, and its whole answer to the prompt where that is more."""
        asked = [(asked.last.output, network.whole) for network, asked in self.made if asked.last.output is not None]
        return asked[-1] if asked else (None, None)

    def stepped(self, x: Tensor, estimate: Estimate, keys: Keys) -> Tensor:
        """The samples after the scheduler's step from `x`."""
        return self.steps.beside(x, estimate, keys, self.asked.last.arguments)
