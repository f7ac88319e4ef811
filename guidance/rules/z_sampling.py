"""Zigzag sampling: a guided step and back again under less guidance (Bai et al. 2024)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from ..fields import number, set_field, whole
from ..move import Move
from ..notation.registry import register
from ..prediction import Level, Space
from ..query import NEGATIVE, POSITIVE, Query
from ..step import Run, Step
from ..turn import Look, Sight

BAI_2024 = """@article{bai2024zigzag,
  title   = {Zigzag Diffusion Sampling: Diffusion Models Can Self-Improve via Self-Reflection},
  author  = {Bai, Lichen and Shao, Shitong and Zhou, Zikai and Qi, Zipeng and Xu, Zhiqiang and Xiong, Haoyi
             and Xie, Zeke},
  journal = {arXiv preprint arXiv:2412.10891},
  year    = {2024}
}"""


class Below(NamedTuple):
    """What `ZSampling` remembers between the two turns of a zigzag.

    Attributes:
        x: the samples after the guided step; None outside of a zigzag.
    """

    x: Tensor | None


@register("zigzag", references=(BAI_2024,), example="cfg(3) | zigzag()")
@dataclass(frozen=True)
class ZSampling(Move[Below]):
    r"""Zigzag sampling: take each step under guidance, invert it under less guidance, and take it again.

    A step of the sampler under the stack leads from x at the level :math:`k = \sigma/\alpha` to :math:`x'` at
    :math:`k'`. The step is undone as in DDIM inversion, with the noise under `scale` that the network predicts at
    :math:`x'` when it is given the level of x:

    .. math:: x \leftarrow \alpha\,\Big(\frac{x'}{\alpha'} + (k - k')\,\epsilon_s(x', k)\Big),
              \qquad \epsilon_s = \epsilon_u + s\,(\epsilon_c - \epsilon_u)

    and on the flow path :math:`x \leftarrow x' + (\sigma - \sigma')\, v_s(x', \sigma)`. What guidance changed and the
    inversion did not take back stays in x, which moves by about
    :math:`\alpha (k - k')(s - w)(\epsilon_c - \epsilon_u)` under CFG of scale w.

    Args:
        scale: s, the scale of the inversion, any number up to 1e6 in size. The authors take 0; 1 is the prompt alone.
        times: zigzags before a step; 0 is off.
        against: the query that the inversion's contrast answers.

    Queries: for each zigzag those of the stack, and "positive" and `against`; of the two only one at ``scale=1`` and at
    ``scale=0``. Their code zigzags at every step but the last.

    State: samples like x, between the two turns of a zigzag.

    Space: noise, or velocity on the flow path. Samplers that evaluate once a step and remember nothing; under one that
    draws noise the inversion takes none of it back.

    References:
        Bai et al., "Zigzag Diffusion Sampling", arXiv:2412.10891, as in their code, with w = 5.5 and s = 0.

    >>> from guidestack import CFG, ZSampling
    >>> print(CFG(5.5) | ZSampling())
    cfg(5.5) | zigzag()
    """

    space: ClassVar[Any] = "noise"
    neutral_values: ClassVar[Mapping[str, Any] | None] = {"times": 0}

    scale: float = 0.0
    times: int = 1
    against: Query | str = NEGATIVE

    def __post_init__(self) -> None:
        number(self, "scale")
        whole(self, "times", 0)
        set_field(self, "against", Query.of(self.against))

    def init(self, run: Run) -> Below:
        """Return the state before the first step, which holds no samples."""
        return Below(None)

    @property
    def takes_turns(self) -> bool:
        """Whether the rule zigzags before steps: whether `times` is above 0."""
        return self.times > 0

    def asks(self) -> frozenset[Query]:
        """Return the queries that the inversion's scale needs: the prompt, `against`, or both."""
        if not self.times:
            return frozenset()
        both = {POSITIVE: self.scale != 0, Query.of(self.against): self.scale != 1}
        return frozenset(query for query, needed in both.items() if needed)

    def queries(self, step: Step, state: Below) -> dict[Query, None]:
        """Return no queries: the rule asks in its turns, and not at the sampler's own evaluation."""
        return {}

    def turns(self, step: Step, state: Below) -> int:
        """Return the number of turns before this step: two for each zigzag."""
        return 2 * self.times

    def look(self, x: Tensor, step: Step, state: Below) -> Look:
        """Ask for the stack's estimate at x; then for the inversion's predictions after the step, at the level of x."""
        if state.x is None:
            return Look(guided=True)
        return Look(dict.fromkeys(sorted(self.asks(), key=str)), x=placed(state.x, _after(step), step.level))

    def turn(self, x: Tensor, sight: Sight, step: Step, state: Below) -> tuple[Tensor, Below]:
        """Take the guided step in the first turn of a zigzag, and invert it under `scale` in the second."""
        if state.x is None:
            return x, Below(sight.steps(sight.estimate))
        level, after = step.level, _after(step)
        if level.path == "flow":
            return state.x + (level.sigma - after.sigma) * self._inverse(sight, "velocity"), Below(None)
        eps = self._inverse(sight, "noise")
        return level.alpha / after.alpha * (state.x - after.sigma * eps) + level.sigma * eps, Below(None)

    def _inverse(self, sight: Sight, space: Space) -> Tensor:
        """The inversion's prediction."""
        asked = self.asks()
        if len(asked) == 1:
            return sight.predictions[next(iter(asked))].read(space)
        c, u = sight.predictions[POSITIVE], sight.predictions[Query.of(self.against)]
        return u.read(space) + self.scale * c.minus(u, space)


def _after(step: Step) -> Level:
    return step.after or Level(1.0, 0.0, step.level.path)


def placed(x: Tensor, level: Level, noisier: Level) -> Tensor:
    """Samples at `level` in the scaling in which those at `noisier` are held, for data of unit variance.

    The network is then handed the same numbers whether a sampler keeps x or ``x / alpha``; nothing changes for flows.
    """
    if level.path == "flow":
        return x
    return x * (math.hypot(noisier.alpha, noisier.sigma) / math.hypot(level.alpha, level.sigma))
