"""Independent condition guidance (Sadat et al. 2024)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ..fields import choice, number
from ..notation.registry import register
from ..query import POSITIVE, Predictions, Query
from ..rule import Rule
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
class ICG(Rule):
    r"""Independent condition guidance: away from a random condition, for networks trained without an empty one.

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

    neutral_values: ClassVar[Mapping[str, Any] | None] = {"scale": 1.0}

    scale: float
    source: str = "tokens"

    def __post_init__(self) -> None:
        number(self, "scale")
        choice(self, "source", SOURCES)

    @property
    def contrast(self) -> Query:
        """The query of the random condition, which the rule leads away from."""
        return Query(f"independent:{self.source}")

    def asks(self) -> frozenset[Query]:
        """The prompt and the random condition; nothing at scale 1."""
        return frozenset() if self.scale == 1 else frozenset({POSITIVE, self.contrast})

    def update(self, estimate: Estimate, predictions: Predictions, step: Step, state: State) -> tuple[Estimate, State]:
        """The estimate moved away from the answer to the random condition, by the scale."""
        if self.scale == 1:
            return estimate, state
        return extrapolated(estimate, predictions[POSITIVE], predictions[self.contrast], self.scale), state
