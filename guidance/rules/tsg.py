"""Time-step guidance (Sadat et al. 2024)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ..errors import RuleError
from ..fields import choice, interval, number, whole
from ..notation.registry import register
from ..query import POSITIVE, Perturbation, Predictions, Query
from ..rule import Rule
from ..step import Estimate, State, Step
from .cfg import extrapolated
from .icg import SADAT_2024_ICG


@register(
    "tsg",
    references=(SADAT_2024_ICG,),
    example="tsg(3, strength=0.8)",
)
@dataclass(frozen=True)
class TSG(Rule):
    r"""Time-step guidance: guide away from the same network with noise on its time embedding; needs no condition.

    .. math::
        \tilde D = D(x, \tilde t, y) + w\,\big(D(x, t, y) - D(x, \tilde t, y)\big),\qquad
        \mathrm{emb}(\tilde t) = \mathrm{emb}(t) + s\, t^a\, \mathrm{std}(\mathrm{emb}(t))\, n,\quad n \sim N(0, I)

    with t in [0, 1], 1 at pure noise, and n drawn anew for each sample at each evaluation.

    Args:
        scale: w, any number up to 1e6 in size; 1 is no guidance.
        strength: s >= 0, in standard deviations of the embedding.
        power: a >= 0; 0 is the paper's constant schedule.
        window: ``(lo, hi)`` of t in [0, 1], ends included, outside of which there is no guidance. The paper's tables
            have it in steps of 1000. A sampler that knows no t (EDM) needs the constant schedule without a window.
        blocks: perturb the embedding in the first so many blocks only: of a UNet, of its encoder and of its decoder; 0
            for all.
        stage: ``"time"``: the embedding before that of a class or a pooled text is added to it; ``"conditioning"``:
            their sum. The paper does not say which; the same in networks that add nothing.

    Queries: "positive", and "positive" perturbed, inside the window: 2 evaluations a step, in two network calls.

    State: none; the draws come from generators keyed by (seed of the sample, step, evaluation), as `guidance.keyed`
    says. Space: any.

    References:
        Sadat, Kansy, Hilliges & Weber, "No Training, No Problem: Rethinking Classifier-Free Guidance for Diffusion
        Models", arXiv:2407.02687, section 5 and Algorithm 2; table of parameters in its appendix. That t is a share of
        the schedule follows from its text and is how this project reads it.

    >>> from guidestack import TSG
    >>> print(TSG(2.5, strength=2, power=1))
    tsg(2.5, strength=2, power=1)
    """

    neutral_values: ClassVar[Mapping[str, Any] | None] = {"scale": 1.0}

    scale: float
    strength: float = 1.0
    power: float = 0.0
    window: tuple[float, float] = (0.0, 1.0)
    blocks: int = 0
    stage: str = "time"

    def __post_init__(self) -> None:
        number(self, "scale")
        number(self, "strength", 0.0)
        number(self, "power", 0.0)
        interval(self, "window", 0.0, 1.0)
        whole(self, "blocks", 0)
        choice(self, "stage", ("time", "conditioning"))

    @property
    def contrast(self) -> Query:
        """The query that the rule guides away from: the prompt, perturbed at full strength."""
        return self._perturbed(self.strength)

    def _perturbed(self, amount: float) -> Query:
        return Query("positive", perturbation=Perturbation(self.stage, amount, self.blocks))

    def _at(self, step: Step) -> Query | None:
        """The perturbed query of this step; None outside the window."""
        if self.scale == 1 or self.strength == 0:
            return None
        lo, hi = self.window
        if step.time is None:
            if self.power == 0 and (lo, hi) == (0, 1):
                return self.contrast  # at every time the same
            raise RuleError(
                f"{self} depends on the time t/T of the training schedule, which this sampler's timesteps do not give; "
                "power=0 without a window needs none"
            )
        amount = self.strength * step.time**self.power
        return self._perturbed(amount) if lo <= step.time <= hi and amount > 0 else None

    def asks(self) -> frozenset[Query]:
        """Return the prompt and the prompt on the perturbed network; nothing at scale 1 or strength 0."""
        return frozenset() if self.scale == 1 or self.strength == 0 else frozenset({POSITIVE, self.contrast})

    def queries(self, step: Step, state: State) -> Mapping[Query, None]:
        """Return the prompt and the prompt on the perturbed network inside the window; nothing outside."""
        weak = self._at(step)
        return {} if weak is None else {POSITIVE: None, weak: None}

    def update(self, estimate: Estimate, predictions: Predictions, step: Step, state: State) -> tuple[Estimate, State]:
        """Guide the estimate away from the perturbed network's prediction, by the scale."""
        weak = self._at(step)
        if weak is None:
            return estimate, state
        return extrapolated(estimate, predictions[POSITIVE], predictions[weak], self.scale), state
