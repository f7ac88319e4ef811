"""Time travel: steps that are taken several times, with fresh noise (RePaint, FreeDoM, TFG)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from ..fields import whole
from ..move import Move
from ..notation.registry import register
from ..prediction import Level
from ..step import Run, State, Step
from ..turn import Look, Sight

LUGMAYR_2022 = """@inproceedings{lugmayr2022repaint,
  title     = {{RePaint}: Inpainting using Denoising Diffusion Probabilistic Models},
  author    = {Lugmayr, Andreas and Danelljan, Martin and Romero, Andres and Yu, Fisher and Timofte, Radu
               and Van Gool, Luc},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year      = {2022},
  note      = {arXiv:2201.09865}
}"""
YU_2023 = """@inproceedings{yu2023freedom,
  title     = {{FreeDoM}: Training-Free Energy-Guided Conditional Diffusion Model},
  author    = {Yu, Jiwen and Wang, Yinhuai and Zhao, Chen and Ghanem, Bernard and Zhang, Jian},
  booktitle = {IEEE/CVF International Conference on Computer Vision},
  year      = {2023},
  note      = {arXiv:2303.09833}
}"""


def noisier(x: Tensor, level: Level, to: Level, z: Tensor) -> Tensor:
    r"""Samples at `level` with noise added that leads to the level `to`.

    .. math:: x \leftarrow \frac{\alpha}{\alpha'} x' + \sqrt{\sigma^2 - \big(\tfrac{\alpha}{\alpha'}\sigma'\big)^2}\; z
    """
    share = to.alpha / level.alpha
    return share * x + math.sqrt(max(0.0, to.sigma**2 - (share * level.sigma) ** 2)) * z


class Descended(NamedTuple):
    """What `Recur` remembers on the way down a jump of several steps.

    Attributes:
        x: the samples after the steps so far; None at the beginning of a jump.
    """

    x: Tensor | None


@register("recur", references=(LUGMAYR_2022, YU_2023), example="cfg(3) | recur(2)")
@dataclass(frozen=True)
class Recur(Move[State]):
    r"""Time travel: take each sampler step several times, and re-noise to the level where it began in between.

    After a step from the level :math:`(\alpha, \sigma)` to :math:`(\alpha', \sigma')` that led to :math:`x'`, fresh
    noise leads back:

    .. math:: x \leftarrow \frac{\alpha}{\alpha'} x' + \sqrt{\sigma^2 - \big(\tfrac{\alpha}{\alpha'}\sigma'\big)^2}\; z

    which on variance preserving levels is :math:`\sqrt{\alpha_t}\, x_{t-1} + \sqrt{1 - \alpha_t}\, z` of the papers.
    Then the step is taken again, `times` times in all. With a `length` of L the same is done with L steps at once: from
    steps 0, L, 2L, ... on, L steps are taken, undone, and taken again.

    The law: without guidance each repetition keeps the law of the samples at its level, for any sampler that has this
    law itself. Under guidance, masks or objectives it mixes: what they changed is made to fit the rest.

    Args:
        times: how often each step is taken, from 1, which is off. RePaint takes 10, FreeDoM 10 in the middle of the
            schedule: ``during(recur(10), progress=(0.2, 0.5))``.
        length: steps that are undone at once, RePaint's jump length, which it sets to 10 of 250 steps. The last jump
            is as long as there are steps left.

    Queries: those of the stack once more for each repetition.

    State: none, or of long jumps samples like x on their way down; the states of other rules are those of the jump's
    beginning. Samplers that evaluate once a step and remember nothing.

    References:
        Lugmayr et al., arXiv:2201.09865; their code counts jumps from the clean end and leaves out the first of them
        and the very last step. Yu et al., arXiv:2303.09833, time travel.

    >>> from guidestack import CFG, Recur
    >>> print(CFG(3) | Recur(4))
    cfg(3) | recur(4)
    """

    neutral_values: ClassVar[Mapping[str, Any] | None] = {"times": 1}

    times: int
    length: int = 1

    def __post_init__(self) -> None:
        whole(self, "times", 1)
        whole(self, "length", 1)

    def init(self, run: Run) -> State:
        """Return the state before the first step; only a jump of several steps keeps samples."""
        return Descended(None) if self.length > 1 else ()

    @property
    def takes_turns(self) -> bool:
        """Whether steps are taken more than once: whether `times` is above 1."""
        return self.times > 1

    def turns(self, step: Step, state: State) -> int:
        """Return the number of turns: one for each repeated step; the last repetition is the sampler's own."""
        return 0 if step.index % self.length else (self.times - 1) * self._steps(step)

    def look(self, x: Tensor, step: Step, state: State) -> Look:
        """Ask for the stack's estimate at x, or at the samples that the jump's steps have led to."""
        ahead = self._ahead(step)
        return Look(guided=True, x=state[0], ahead=ahead) if ahead else Look(guided=True)

    def turn(self, x: Tensor, sight: Sight, step: Step, state: State) -> tuple[Tensor, State]:
        """Take a step of the sampler; after the last one of a jump, re-noise to the level where the jump began."""
        reached = sight.steps(sight.estimate)
        if self._ahead(step) + 1 < self._steps(step):
            return x, Descended(reached)
        after = (sight.after if self.length > 1 else step.after) or Level(1.0, 0.0)
        return noisier(reached, after, step.level, sight.noise(x, "recur")), Descended(None) if state else state

    def _steps(self, step: Step) -> int:
        """The steps of the jump that begins here."""
        return min(self.length, step.run.steps - step.index)

    def _ahead(self, step: Step) -> int:
        """How many steps of the jump are taken before this turn."""
        return (step.turn - 1) % self._steps(step)
