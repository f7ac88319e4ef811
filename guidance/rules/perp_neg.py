"""Perp-Neg: negative prompts that cannot undo the positive one (Armandpour et al. 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import RuleError
from ..fields import number, strengths
from ..notation.registry import register
from ..per_sample import added, share
from ..query import NULL, POSITIVE, Predictions, Queries, Query
from ..rule import Rule
from ..step import Estimate, Run, State, Step

ARMANDPOUR_2023 = """@article{armandpour2023reimagine,
  title   = {Re-imagine the Negative Prompt Algorithm: Transform 2D Diffusion into 3D, alleviate Janus problem and
             Beyond},
  author  = {Armandpour, Mohammadreza and Sadeghian, Ali and Zheng, Huangjie and Sadeghian, Amir and Zhou, Mingyuan},
  journal = {arXiv preprint arXiv:2304.04968},
  year    = {2023}
}"""

ORIGIN = NULL  # the true empty prompt, never the negative one


@register("perpneg", references=(ARMANDPOUR_2023,), example="perpneg(3)")
@dataclass(frozen=True)
class PerpNeg(Rule):
    r"""Perp-Neg: guide away from the part of each negative prompt that is perpendicular to the prompt.

    .. math::
        \tilde\epsilon = \epsilon_u + s\,\Big[e_p + \sum_j w^+_j\, e_j^{\perp} - \sum_i w_i\, e_i^{\perp}\Big],\qquad
        e_k = \epsilon_k - \epsilon_u,\quad e^{\perp} = e - \frac{\langle e, e_p\rangle}{\langle e_p, e_p\rangle} e_p

    where u is the true empty prompt, p the prompt, j further positives, i the negatives; inner products are taken
    within each sample. Whatever the negatives, the component along :math:`e_p` is s.

    On an estimate that earlier rules already improved it adds the same difference from :math:`\epsilon_p`.

    Args:
        scale: s, any number up to 1e6 in size. 1 with all weights 0 does nothing.
        weights: strengths :math:`w_i \ge 0`: one number for all negatives, or one for each.
        positive_weights: strengths :math:`w^+_j \ge 0` of the positives beside the prompt, likewise. The prompt's own
            weight is 1.

    Queries: "positive", "null", each negative and each further positive, for the samples that have them: 2 + n
    evaluations a step for a sample with n of these, in one batched call.

    State: none. Space: any: the coefficient is a ratio of products of differences. Where :math:`e_p = 0` nothing is
    projected away.

    References:
        Armandpour et al., "Re-imagine the Negative Prompt Algorithm", arXiv:2304.04968, eq. 7 and Algorithm 1.

    >>> from guidestack import PerpNeg, parse
    >>> parse("perpneg(7.5, weights=(1, 0.5))") == PerpNeg(7.5, weights=(1.0, 0.5)) | parse("stack()")
    True
    """

    neutral_values: ClassVar[Mapping[str, Any] | None] = {"scale": 1.0, "weights": 0.0, "positive_weights": 0.0}

    scale: float
    weights: float | tuple[float, ...] = 1.0
    positive_weights: float | tuple[float, ...] = 1.0

    def __post_init__(self) -> None:
        number(self, "scale")
        strengths(self, "weights")
        strengths(self, "positive_weights")

    @property
    def contrast(self) -> Query:
        """The query that the rule guides away from: the empty prompt."""
        return ORIGIN

    @property
    def weight_counts(self) -> Mapping[str, int]:
        """The number of weights of the negatives and of the further positives, where there are several."""
        given = {"negative": self.weights, "positive": self.positive_weights}
        return {kind: len(own) for kind, own in given.items() if isinstance(own, tuple)}

    def _named(self, run: Run) -> dict[Query, tuple[float, tuple[int, ...]]]:
        """Each further prompt with its signed weight and how many of its kind each sample has."""
        named: dict[Query, tuple[float, tuple[int, ...]]] = {}
        for kind, sign, first, own, counts in (
            ("positive", 1.0, 1, self.positive_weights, run.positives or (0,) * run.batch),
            ("negative", -1.0, 0, self.weights, run.negatives or (1,) * run.batch),
        ):
            for index in range(max(counts, default=0)):
                weight = own[index] if isinstance(own, tuple) else own
                if weight:
                    named[Query(f"{kind}:{index + first}")] = (sign * weight, tuple(n - index for n in counts))
        return named

    def init(self, run: Run) -> State:
        """Check the number of weights against the number of prompts; the rule has no state.

        Samples with fewer prompts than there are weights use the first ones: a batch may mix them.

        Raises:
            RuleError: a sample has more prompts than there are weights.
        """
        for what, own, counts in (
            ("negative", self.weights, run.negatives or (1,) * run.batch),
            ("further positive", self.positive_weights, run.positives or (0,)),
        ):
            if isinstance(own, tuple) and len(own) < max(counts, default=0):
                raise RuleError(
                    f"PerpNeg has {len(own)} weights for {max(counts, default=0)} {what} prompts; give one for each, "
                    "or one number for all"
                )
        return ()

    def _is_neutral(self) -> bool:
        def silent(own: float | tuple[float, ...]) -> bool:
            return not any(own) if isinstance(own, tuple) else own == 0

        return self.scale == 1 and silent(self.weights) and silent(self.positive_weights)

    def asks(self) -> frozenset[Query]:
        """The prompt, the empty prompt, and all negatives and further positives that the run has."""
        if self._is_neutral():
            return frozenset()
        return frozenset({POSITIVE, ORIGIN, Query("negative:each"), Query("positive:each")})

    def queries(self, step: Step, state: State) -> Queries:
        """Return the prompt and the empty prompt for all samples, and each further prompt for those that have it."""
        if self._is_neutral():
            return {}
        asked: dict[Query, Tensor | None] = {POSITIVE: None, ORIGIN: None}
        for query, (_, left) in self._named(step.run).items():
            asked[query] = None if min(left) > 0 else step.run.mask(n > 0 for n in left)
        return asked

    def update(self, estimate: Estimate, predictions: Predictions, step: Step, state: State) -> tuple[Estimate, State]:
        """Return the guided estimate. Where a sample has no negative it reads the prompt, which changes nothing."""
        if self._is_neutral():
            return estimate, state
        p, u = predictions[POSITIVE], predictions[ORIGIN]
        e_p, others = p.minus(u, "any"), self._others(predictions, step.run)
        # e_p + others - share * e_p, the bracket of the equation: projection is linear, the sum is projected once
        bracket = e_p if others is None else torch.addcmul(others, e_p, 1 - share(others, e_p))
        if estimate.is_base(p):
            return estimate.replace("any", added(u.native, bracket, self.scale)), state
        return estimate.replace("any", estimate.read("any").to(e_p.dtype) + self.scale * bracket - e_p), state

    def _others(self, predictions: Predictions, run: Run) -> Tensor | None:
        """The weighted sum of e over the further positives and the negatives; None where the run has none."""
        total: Tensor | None = None
        for query, (weight, _) in self._named(run).items():
            e = predictions[query].minus(predictions[ORIGIN], "any")
            total = e.mul_(weight) if total is None else total.add_(e, alpha=weight)
        return total
