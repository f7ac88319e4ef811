"""Classifier-free guidance (Ho & Salimans 2022)."""

from __future__ import annotations

from dataclasses import dataclass

from ..contrasting import Contrasting
from ..notation.registry import register
from ..per_sample import added
from ..prediction import Prediction
from ..query import NEGATIVE, Query
from ..step import Estimate, State, Step

HO_SALIMANS_2022 = """@article{ho2022classifier,
  title   = {Classifier-Free Diffusion Guidance},
  author  = {Ho, Jonathan and Salimans, Tim},
  journal = {arXiv preprint arXiv:2207.12598},
  year    = {2022}
}"""


def extrapolated(estimate: Estimate, c: Prediction, u: Prediction, scale: float) -> Estimate:
    """``u + scale*(c - u)``; on an estimate that earlier rules already improved, ``estimate + (scale - 1)*(c - u)``."""
    difference = c.native - u.native  # in the network's type, as the pipelines compute it
    if estimate.is_base(c):
        # Equal to the other branch but for rounding, and rounded as the field's implementations round.
        return estimate.replace("any", added(u.native, difference, scale))
    return estimate.replace("any", added(estimate.read("any"), difference, scale - 1))


@register("cfg", references=(HO_SALIMANS_2022,), example=("cfg(3)", "cfg(3, against='null')"))
@dataclass(frozen=True)
class CFG(Contrasting):
    r"""Classifier-free guidance: guide away from the contrast `u`, towards the prompt `c`.

    .. math:: \tilde D = D_u + s\,(D_c - D_u)

    On an estimate :math:`\hat D` that earlier rules already improved it adds the same difference,
    :math:`\tilde D = \hat D + (s - 1)(D_c - D_u)`, so that rules of this kind commute.

    Args:
        scale: s, any number up to 1e6 in size. 1 is no guidance, 0 the contrast itself.
        against: the query that `u` answers. ``"negative"``, the default, is the negative prompt when one is given and
            the empty prompt otherwise.

    Queries: "positive" and `against`, hence 2 evaluations a step; none of its own at ``scale=1``.

    State: none. Space: any, since the weights sum to one: on the network's own output, in its own type.

    References:
        Ho & Salimans, "Classifier-Free Diffusion Guidance", arXiv:2207.12598, eq. 6, where ``w = s - 1``; written with
        s as by Saharia et al., arXiv:2205.11487, eq. 2, and by diffusers.

    >>> from guidestack.guidance.testing import gaussian_1d, guide_once
    >>> c, u = gaussian_1d.denoised("positive", x=1.0, sigma=1.0), gaussian_1d.denoised("null", x=1.0, sigma=1.0)
    >>> c, round(u, 4), round(guide_once(CFG(3), x=1.0, sigma=1.0), 4)
    (0.5, 0.6667, 0.1667)
    """

    scale: float
    against: Query | str = NEGATIVE

    def guided(
        self, estimate: Estimate, c: Prediction, u: Prediction, step: Step, state: State
    ) -> tuple[Estimate, State]:
        """Guide the estimate away from `u` by the scale: ``u + scale*(c - u)`` if no rule has changed it."""
        return extrapolated(estimate, c, u, self.scale), state
