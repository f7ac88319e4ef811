"""Tangential damping classifier-free guidance, TCFG (Kwon et al. 2025)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ..contrasting import Contrasting
from ..notation.registry import register
from ..per_sample import dot, norm, projected, ratio
from ..prediction import Prediction
from ..query import NEGATIVE, Query
from ..step import Estimate, State, Step

KWON_2025 = """@inproceedings{kwon2025tcfg,
  title     = {{TCFG}: Tangential Damping Classifier-free Guidance},
  author    = {Kwon, Mingi and Kim, Shin Seong and Jeong, Jaeseok and Hsiao, Yi Ting and Uh, Youngjung},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year      = {2025},
  note      = {arXiv:2503.18137}
}"""


@register("tcfg", references=(KWON_2025,), example="tcfg(3)")
@dataclass(frozen=True)
class TCFG(Contrasting):
    r"""TCFG, tangential damping: guide away from the contrast's part along the direction that both predictions share.

    With :math:`e_1` the first right singular vector of the two rows :math:`\epsilon_c, \epsilon_u` of each sample:

    .. math:: \tilde\epsilon = u' + s\,(\epsilon_c - u'),\qquad u' = \langle\epsilon_u, e_1\rangle\, e_1

    :math:`u'` needs three inner products and no decomposition of vectors as long as a sample: with
    :math:`h^2 = (\lVert\epsilon_c\rVert^2 - \lVert\epsilon_u\rVert^2)^2 + 4\langle\epsilon_c, \epsilon_u\rangle^2`

    .. math:: u' = \frac{\langle\epsilon_c, \epsilon_u\rangle}{h}\,\epsilon_c
              + \frac12\Big(1 - \frac{\lVert\epsilon_c\rVert^2 - \lVert\epsilon_u\rVert^2}{h}\Big)\,\epsilon_u

    On an estimate that earlier rules already improved it adds :math:`(s - 1)(\epsilon_c - u')`.

    Args:
        scale: s, any number up to 1e6 in size; 1 is no guidance.
        against: the query that :math:`\epsilon_u` answers, as in `CFG`.

    Queries: "positive" and `against`, hence 2 evaluations a step; none of its own at ``scale=1``.

    State: none. Space: noise, as the paper has it; directions of clean samples or velocities are others. At pure noise
    (alpha 0), where both noises are x, what is added is its limit, in velocities half of the difference d and of the
    part of d along x.

    References:
        Kwon, Kim, Jeong, Hsiao & Uh, "TCFG: Tangential Damping Classifier-free Guidance", arXiv:2503.18137, section 4.

    >>> from guidestack import CFG, TCFG
    >>> from guidestack.guidance.testing import guide_once
    >>> round(abs(guide_once(TCFG(3), x=1.0, sigma=1.0) - guide_once(CFG(3), x=1.0, sigma=1.0)), 12)  # of 1 number
    0.0
    """

    space: ClassVar[Any] = "noise"

    scale: float
    against: Query | str = NEGATIVE

    def guided(
        self, estimate: Estimate, c: Prediction, u: Prediction, step: Step, state: State
    ) -> tuple[Estimate, State]:
        """Guide away from the contrast's part along the direction that both predictions share."""
        if c.level.alpha == 0:
            difference = c.minus(u, "velocity")
            change = projected(difference, c.x.to(difference.dtype), keep=2).mul_(0.5)
            return estimate.plus("velocity", change, self.scale - 1), state
        eps_c, eps_u = c.noise, u.noise
        more, along = norm(eps_c).square() - norm(eps_u).square(), dot(eps_c, eps_u)
        h = torch.hypot(more, 2 * along)
        of_c, of_u = ratio(along, h), (1 - ratio(more, h)) / 2  # u' = of_c*eps_c + of_u*eps_u
        change = torch.addcmul((1 - of_c) * eps_c, of_u, eps_u, value=-1)
        return estimate.plus("noise", change, self.scale - 1), state
