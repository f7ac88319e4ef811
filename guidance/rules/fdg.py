"""Frequency-decoupled guidance, FDG (Sadat et al. 2025)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ..bands import Banded, Weigh, pyramid_low
from ..fields import number, set_field
from ..notation.registry import register
from ..prediction import Prediction
from ..query import NEGATIVE, Query
from ..step import Estimate, State, Step
from .cfg import extrapolated

SADAT_2025 = """@article{sadat2025guidance,
  title   = {Guidance in the Frequency Domain Enables High-Fidelity Sampling at Low {CFG} Scales},
  author  = {Sadat, Seyedmorteza and Vontobel, Tobias and Salehi, Farnood and Weber, Romann M.},
  journal = {arXiv preprint arXiv:2506.19713},
  year    = {2025}
}"""


def by_bands(estimate: Estimate, c: Prediction, u: Prediction, low: float, high: float, weigh: Weigh) -> Estimate:
    """Classifier-free guidance with a scale for the low frequencies and one for the others.

    ``estimate + weigh(c - u, low - 1, high - 1)``; plain guidance where the two are equal.
    """
    if low == high:
        return extrapolated(estimate, c, u, low)
    change = weigh(c.minus(u, "any"), low - 1, high - 1)
    return estimate.replace("any", change.add_(estimate.read("any")))


@register("fdg", references=(SADAT_2025,), example="fdg(2, 4)")
@dataclass(frozen=True)
class FDG(Banded):
    r"""Frequency-decoupled guidance: a scale for the low frequencies of the difference and one for the high ones.

    .. math:: \tilde D = D_u + s_{low}\, L\,(D_c - D_u) + s_{high}\,(1 - L)(D_c - D_u)

    with L the low band of a Laplacian pyramid of two levels. On an estimate that earlier rules already improved it adds
    :math:`(s_{low} - 1)\, L\, d + (s_{high} - 1)(1 - L)\, d` with :math:`d = D_c - D_u`.

    Args:
        low: :math:`s_{low}`, any number up to 1e6 in size. Equal to `high` it is `CFG`; both 1 are no guidance.
        high: :math:`s_{high}`.
        against: the query that :math:`D_u` answers, as in `CFG`.

    Queries: "positive" and `against`, hence 2 evaluations a step; none of its own where both scales are 1.

    State: none. Space: any, since L is linear and the weights sum to one. The paper's projection of each band, which it
    leaves out by default, is not here.

    Raises:
        RuleError: when a run begins, samples have no height and width, such as packed latents.

    References:
        Sadat, Vontobel, Salehi & Weber, "Guidance in the Frequency Domain Enables High-Fidelity Sampling at Low CFG
        Scales", arXiv:2506.19713, Algorithm 2.

    >>> from guidestack import FDG
    >>> print(FDG(5, 10))
    fdg(5, 10)
    """

    neutral_values: ClassVar[Mapping[str, Any] | None] = {"low": 1.0, "high": 1.0}

    low: float
    high: float
    against: Query | str = NEGATIVE

    def __post_init__(self) -> None:
        number(self, "low")
        number(self, "high")
        set_field(self, "against", Query.of(self.against))

    def guided(
        self, estimate: Estimate, c: Prediction, u: Prediction, step: Step, state: State
    ) -> tuple[Estimate, State]:
        """Add the low and the high band of the difference, each by its own scale."""
        return by_bands(estimate, c, u, self.low, self.high, pyramid_low), state
