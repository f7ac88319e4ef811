"""Time travel: steps that are taken several times, with fresh noise (RePaint, FreeDoM, TFG)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ..fields import whole
from ..move import Move
from ..notation.registry import register
from ..prediction import Level
from ..step import State, Step
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


@register("recur", references=(LUGMAYR_2022, YU_2023), example="cfg(3) | recur(2)")
@dataclass(frozen=True)
class Recur(Move):
    r"""Time travel: take each step of the sampler several times, back at the noise where it began in between.

    After a step from the level :math:`(\alpha, \sigma)` to :math:`(\alpha', \sigma')` that led to :math:`x'`, fresh
    noise leads back:

    .. math:: x \leftarrow \frac{\alpha}{\alpha'} x' + \sqrt{\sigma^2 - \big(\tfrac{\alpha}{\alpha'}\sigma'\big)^2}\; z

    which on variance preserving levels is :math:`\sqrt{\alpha_t}\, x_{t-1} + \sqrt{1 - \alpha_t}\, z` of the papers.
    Then the step is taken again, `times` times in all.

    The law: without guidance each repetition keeps the law of the samples at its level, for any sampler that has this
    law itself. Under guidance, masks or objectives it mixes: what they changed is made to fit the rest.

    Args:
        times: how often each step is taken, from 1, which is off. RePaint takes 10, FreeDoM 10 in the middle of the
            schedule: ``during(recur(10), progress=(0.2, 0.5))``.

    Queries: those of the stack once more for each repetition.

    State: none; the states of other rules are those of the step's first time. Samplers that evaluate once a step and
    remember nothing.

    References:
        Lugmayr et al., arXiv:2201.09865, Algorithm 1, of jumps of length 1. Yu et al., arXiv:2303.09833, Algorithm 2.

    >>> from guidestack import CFG, Recur
    >>> print(CFG(3) | Recur(4))
    cfg(3) | recur(4)
    """

    neutral_values: ClassVar[Mapping[str, Any] | None] = {"times": 1}

    times: int

    def __post_init__(self) -> None:
        whole(self, "times", 1)

    @property
    def takes_turns(self) -> bool:
        """Whether steps are taken more than once."""
        return self.times > 1

    def turns(self, step: Step, state: State) -> int:
        """A turn for each time but the last, which is the sampler's own."""
        return self.times - 1

    def look(self, x: Tensor, step: Step, state: State) -> Look:
        """The stack's estimate at x."""
        return Look(guided=True)

    def turn(self, x: Tensor, sight: Sight, step: Step, state: State) -> tuple[Tensor, State]:
        """The sampler's step, and back."""
        after = step.after or Level(1.0, 0.0)
        return noisier(sight.steps(sight.estimate), after, step.level, sight.noise(x, "recur")), state
