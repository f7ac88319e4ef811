"""Skimmed CFG (Extraltodeus 2024)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..contrasting import Contrasting
from ..errors import RuleError
from ..fields import number
from ..notation.registry import register
from ..prediction import Prediction
from ..query import NEGATIVE, Query
from ..step import Estimate, State, Step

EXTRALTODEUS_2024 = """@misc{extraltodeus2024skimmed,
  title        = {{Skimmed CFG}},
  author       = {Extraltodeus},
  year         = {2024},
  howpublished = {https://github.com/Extraltodeus/Skimmed_CFG}
}"""


@register("skimmed", references=(EXTRALTODEUS_2024,), example="skimmed(4, skim=3)")
@dataclass(frozen=True)
class Skimmed(Contrasting):
    r"""Skimmed CFG: a smaller scale for elements that guidance moves further from 0 than the noisy sample.

    On denoised predictions, for each element by itself. With :math:`d = D_c - D_u`, and y = x/alpha the noisy sample:

    1. Where d leads :math:`D_u` towards 0 and :math:`D_u - (s - 1)\,d` is further out than y, d is multiplied by
       :math:`k/s`.
    2. Where d leads :math:`D_c` away from 0 and :math:`D_c + (s - 1)\,d` is further out than y, with that d, the
       element has scale k, everywhere else s:

    .. math:: \tilde D = D_c + (s' - 1)\, d,\qquad s' \in \{k, s\}

    On an estimate that earlier rules already improved it adds :math:`(s' - 1)\,d`.

    Args:
        scale: s >= 1; 1 is no guidance.
        skim: k, the scale of the elements that are skimmed. With ``skim=scale`` nothing is: it is `CFG`.
        against: the query that :math:`D_u` answers, as in `CFG`.

    Queries: "positive" and `against`, hence 2 evaluations a step; none of its own at ``scale=1``.

    State: none. Space: denoised, as its author has it: signs mean something else elsewhere. y has the scaling of
    k-diffusion, whatever the sampler's.

    References:
        Extraltodeus, Skimmed_CFG, https://github.com/Extraltodeus/Skimmed_CFG, the node with a single scale, with its
        filter of flipped signs. There is no paper.

    >>> from guidestack import Skimmed
    >>> print(Skimmed(12))
    skimmed(12)
    """

    space: ClassVar[Any] = "denoised"

    scale: float
    skim: float = 7.0
    against: Query | str = NEGATIVE

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scale < 1:
            raise RuleError(f"Skimmed: scale must be 1 or more, got {self.scale!r}; cfg(scale) takes any")
        number(self, "skim")

    def guided(
        self, estimate: Estimate, c: Prediction, u: Prediction, step: Step, state: State
    ) -> tuple[Estimate, State]:
        """Guide each element of the clean sample by the scale, or by `skim` where that leads further out."""
        noisy = c.x.to(c.denoised.dtype) / c.level.alpha
        d = c.minus(u, "denoised")
        back = _leads_beyond(u.denoised, d, 1 - self.scale, noisy)
        d.mul_(back.mul_(self.skim / self.scale - 1).add_(1))  # k/s there, 1 elsewhere
        out = _leads_beyond(c.denoised, d, self.scale - 1, noisy)
        return estimate.plus("denoised", d.mul_(out.mul_(self.skim - self.scale).add_(self.scale - 1)), 1.0), state


@torch.no_grad()
def _leads_beyond(value: Tensor, d: Tensor, by: float, noisy: Tensor) -> Tensor:
    """1 where ``by*d`` leads `value` away from 0 and further out than the noisy sample, else 0: in numbers of d's type.

    Comparisons in place on numbers, since choosing by booleans takes several times as long on a CPU.
    """
    further = torch.add(value, d, alpha=by).sub_(noisy).mul_(value)
    away = torch.mul(value, d).mul_(math.copysign(1, by))
    return torch.minimum(further, away).gt_(0)
