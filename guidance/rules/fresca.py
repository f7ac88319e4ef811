"""FreSca: scaling in frequency space (Huang et al. 2025)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from ..bands import Banded, disc_low
from ..fields import number
from ..notation.registry import register
from ..prediction import Prediction
from ..query import NEGATIVE, Query
from ..step import Estimate, State, Step
from .fdg import by_bands

HUANG_2025 = """@article{huang2025fresca,
  title   = {{FreSca}: Scaling in Frequency Space Enhances Diffusion Models},
  author  = {Huang, Chao and Liang, Susan and Tang, Yunlong and Bi, Jing and Ma, Li and Tian, Yapeng
             and Xu, Chenliang},
  journal = {arXiv preprint arXiv:2504.02154},
  year    = {2025}
}"""


@register("fresca", references=(HUANG_2025,), example="fresca(3, high=1.5)")
@dataclass(frozen=True)
class FreSca(Banded):
    r"""FreSca: classifier-free guidance whose difference has its low and high Fourier bands multiplied by factors.

    .. math:: \tilde D = D_u + s\,(l\, L\, d + h\,(1 - L)\, d),\qquad d = D_c - D_u

    with L the frequencies :math:`k_x^2 + k_y^2 \le r^2`, :math:`r = r_0 \min(H, W)/2`. On an estimate that earlier
    rules already improved it adds :math:`(s l - 1)\, L\, d + (s h - 1)(1 - L)\, d`.

    Args:
        scale: s, any number up to 1e6 in size. With both factors 1, 1 is no guidance.
        low: l, the factor of the low frequencies. With both factors 1 it is `CFG`.
        high: h, the factor of the high ones; the paper's pictures have 1.5.
        cutoff: :math:`r_0` in [0, 1], where low ends, as a share of half the smaller side: one value for all sizes.
        against: the query that :math:`D_u` answers, as in `CFG`.

    Queries: "positive" and `against`, hence 2 evaluations a step; none of its own where scale and factors are 1.

    State: none. Space: any, since L is linear and the weights sum to one. The paper's other cutoff, at a share of the
    spectrum's magnitude, is not here.

    Raises:
        RuleError: when a run begins, samples have no height and width, such as packed latents.

    References:
        Huang et al., "FreSca: Scaling in Frequency Space Enhances Diffusion Models", arXiv:2504.02154, eqs. 2, 5 and 6.
        A widely used node takes a square of 20 periods for L instead: half of all at 1024x1024 and everything at
        320x320 and below.

    >>> from guidestack import FreSca
    >>> print(FreSca(7.5, high=1.5))
    fresca(7.5, high=1.5)
    """

    neutral_values: ClassVar[Mapping[str, Any] | None] = {"scale": 1.0, "low": 1.0, "high": 1.0}

    scale: float
    low: float = 1.0
    high: float = 1.0
    cutoff: float = 0.5
    against: Query | str = NEGATIVE

    def __post_init__(self) -> None:
        super().__post_init__()
        number(self, "low")
        number(self, "high")
        number(self, "cutoff", 0.0, 1.0)

    def guided(
        self, estimate: Estimate, c: Prediction, u: Prediction, step: Step, state: State
    ) -> tuple[Estimate, State]:
        """Add the difference with its low and high band multiplied by their factors, by `scale`."""
        low, high = self.scale * self.low, self.scale * self.high
        return by_bands(estimate, c, u, low, high, partial(disc_low, cutoff=self.cutoff)), state
