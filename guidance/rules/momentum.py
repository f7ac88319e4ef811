"""Momentum guidance for flow models (2026)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from ..fields import choice, number
from ..notation.registry import register
from ..prediction import SPACES, Space
from ..query import Predictions
from ..rule import Rule
from ..step import Estimate, State, Step

MOMENTUM_2026 = """@article{momentum2026,
  title   = {Momentum Guidance: Plug-and-Play Guidance for Flow Models},
  journal = {arXiv preprint arXiv:2602.20360},
  year    = {2026}
}"""


class Averaged(NamedTuple):
    """What momentum guidance remembers: the average of the estimates so far, shape ``(B, ...)``."""

    average: Tensor


@register("momentum", references=(MOMENTUM_2026,), example="momentum(0.5)")
@dataclass(frozen=True)
class Momentum(Rule):
    r"""Momentum guidance: guide away from the average of earlier steps' estimates. It needs no contrast.

    .. math:: \tilde v = \hat v + m\,(\hat v - a),\qquad a_{next} = \beta a + (1 - \beta)\,\hat v

    with :math:`\hat v` what the rules before made of the step, the prompt's prediction where there are none; at the
    first evaluation :math:`a = \hat v`.

    Args:
        amount: m >= 0, any number up to 1e6; 0 does nothing.
        decay: :math:`\beta` in [0, 1), the share of the average that stays.
        space: what v is. None is the velocity on the path of a flow, as the paper has it, and the denoised prediction
            on others, as its port to ComfyUI has it: their velocity turns where clean sample and noise stay the same.

    Queries: none of its own, for models without a contrast, too.

    State: the average, ``(B, ...)`` in float32 or better; none before the first evaluation.

    References:
        "Momentum Guidance: Plug-and-Play Guidance for Flow Models", arXiv:2602.20360; defaults as its port to ComfyUI.

    >>> from guidestack import CFG, Momentum
    >>> print(CFG(4) | Momentum(0.3))
    cfg(4) | momentum(amount=0.3)
    """

    neutral_values: ClassVar[Mapping[str, Any] | None] = {"amount": 0.0}

    amount: float = 0.5
    decay: float = 0.6
    space: Space | None = None  # type: ignore[assignment,misc]  # the user's choice, so a field instead of a class attribute

    def __post_init__(self) -> None:
        number(self, "amount", 0.0)
        number(self, "decay", 0.0, 1.0)
        if self.space is not None:
            choice(self, "space", SPACES)

    def update(self, estimate: Estimate, predictions: Predictions, step: Step, state: State) -> tuple[Estimate, State]:
        """Guide away from the average of earlier estimates, and add this estimate to the average."""
        if self.amount == 0:
            return estimate, state
        space = self.space or ("velocity" if step.level.path == "flow" else "denoised")
        value = estimate.read(space)
        if not isinstance(state, Averaged):
            return estimate, Averaged(value.clone())  # a network may write its next answer where this one is
        away = value - state.average
        average = state.average.add(away, alpha=1 - self.decay)
        return estimate.replace(space, value.add(away, alpha=self.amount)), Averaged(average)
