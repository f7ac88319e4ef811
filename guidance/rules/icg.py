"""Independent condition guidance (Sadat et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass

from ..contrasting import Contrasting
from ..fields import choice, number
from ..notation.registry import register
from ..prediction import Prediction
from ..query import Query
from ..step import Estimate, State, Step
from .cfg import extrapolated

SADAT_2024_ICG = """@inproceedings{sadat2025no,
  title     = {No Training, No Problem: Rethinking Classifier-Free Guidance for Diffusion Models},
  author    = {Sadat, Seyedmorteza and Kansy, Manuel and Hilliges, Otmar and Weber, Romann M.},
  booktitle = {International Conference on Learning Representations},
  year      = {2025},
  note      = {arXiv:2407.02687}
}"""

SOURCES = ("tokens", "gaussian", "class")


@register(
    "icg",
    references=(SADAT_2024_ICG,),
    example=("icg(3)", "icg(3, source='gaussian')", "icg(3, source='class')"),
)
@dataclass(frozen=True)
class ICG(Contrasting):
    r"""Independent condition guidance: guide away from a random condition, for networks without an empty one.

    .. math:: \tilde D = D(x, t, \hat y) + s\,\big(D(x, t, y) - D(x, t, \hat y)\big),\qquad \hat y \perp x

    with :math:`\hat y` drawn anew for each sample at each evaluation.

    Args:
        scale: s, any number up to 1e6 in size; 1 is no guidance.
        source: where the random condition comes from. ``"tokens"``: uniformly random token ids, without begin and end,
            through the text encoder; ``"gaussian"``: normal numbers of mean 0 and of the standard deviation of the
            prompt's embedding; ``"class"``: a uniformly random class.

    Queries: "positive" and "independent:SOURCE", hence 2 evaluations a step; none of its own at ``scale=1``.

    State: none; the draws come from generators keyed by (seed of the sample, step, evaluation), as `guidance.keyed`
    says. Space: any.

    References:
        Sadat, Kansy, Hilliges & Weber, "No Training, No Problem: Rethinking Classifier-Free Guidance for Diffusion
        Models", arXiv:2407.02687, section 4 and Algorithm 1.

    >>> from guidestack import ICG
    >>> sorted(map(str, ICG(3).asks()))
    ['independent:tokens', 'positive']
    """

    scale: float
    source: str = "tokens"

    def __post_init__(self) -> None:
        number(self, "scale")
        choice(self, "source", SOURCES)

    @property
    def contrast(self) -> Query:
        """The query that the rule guides away from: a random condition."""
        return Query(f"independent:{self.source}")

    def guided(
        self, estimate: Estimate, c: Prediction, u: Prediction, step: Step, state: State
    ) -> tuple[Estimate, State]:
        """Guide the estimate away from the prediction under the random condition, by the scale."""
        return extrapolated(estimate, c, u, self.scale), state
