"""A rule within a window of noise levels or of progress (Kynkäänniemi et al. 2024)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from ..errors import RuleError, shown
from ..fields import flag, interval
from ..notation.registry import register
from ..rule import Wrapper
from ..step import State, Step

KYNKAANNIEMI_2024 = """@inproceedings{kynkaanniemi2024applying,
  title     = {Applying Guidance in a Limited Interval Improves Sample and Distribution Quality in Diffusion Models},
  author    = {Kynk{\\"a}{\\"a}nniemi, Tuomas and Aittala, Miika and Karras, Tero and Laine, Samuli and Aila, Timo
               and Lehtinen, Jaakko},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2024},
  note      = {arXiv:2404.07724}
}"""


@register(
    "during",
    references=(KYNKAANNIEMI_2024,),
    example="during(cfg(3), progress=(0.1, 0.8))",
)
@dataclass(frozen=True)
class During(Wrapper):
    r"""Apply `rule` inside a window of noise levels or of progress only; outside it costs and changes nothing.

    .. math:: w(\sigma) = w \ \text{if}\ \sigma_{lo} < \sigma \le \sigma_{hi},\ \text{else}\ 1

    Args:
        rule: any rule, a stack included.
        sigma: ``(lo, hi)``, the window in noise levels sigma/alpha (the sigma of EDM and k-diffusion), open below and
            closed above. ``hi`` may be ``inf``. A noise level means the same for every sampler and number of steps.
        progress: ``(start, stop)``, the window in shares of the schedule: step i of N is in it when
            ``start <= i/N < stop``. Give this or `sigma`.
        per_step: decide once a step, by the level at which the step begins, as the paper's code does, instead of at
            every evaluation. The two differ for solvers that evaluate twice a step, at the edges of the window.

    Queries: those of `rule` inside; none outside.

    State: that of `rule`, which does not change outside the window.

    References:
        Kynkäänniemi et al., "Applying Guidance in a Limited Interval Improves Sample and Distribution Quality in
        Diffusion Models", arXiv:2404.07724, eq. 5.

    >>> from guidestack import CFG
    >>> print(During(CFG(4), sigma=(0.19, 1.61)))
    during(cfg(4), sigma=(0.19, 1.61))
    """

    carries_turns: ClassVar[bool] = True

    sigma: tuple[float, float] | None = None
    progress: tuple[float, float] | None = None
    per_step: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        flag(self, "per_step")
        if self.sigma is not None:
            interval(self, "sigma", 0.0, math.inf)
        if self.progress is not None:
            interval(self, "progress", 0.0, 1.0)
        if (self.sigma is None) == (self.progress is None):
            raise RuleError(
                f"During takes one window, sigma=(lo, hi) or progress=(start, stop); got sigma="
                f"{shown(self.sigma)}, progress={shown(self.progress)}"
            )

    def applies(self, step: Step, state: State) -> bool:
        """Whether the rule is applied at `step`: whether `step` lies in the window."""
        return self.inside(step)

    def inside(self, step: Step) -> bool:
        """Whether the level or the progress of `step` lies in the window."""
        if self.progress is not None:
            start, stop = self.progress
            return start <= step.progress < stop
        assert self.sigma is not None  # one of the two is given
        level = step.step_level if self.per_step and step.step_level is not None else step.level
        lo, hi = self.sigma
        return lo < level.k_sigma <= hi
