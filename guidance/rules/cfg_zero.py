"""CFG-Zero* (Fan et al. 2025)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ..contrasting import Contrasting
from ..errors import RuleError
from ..fields import whole
from ..notation.registry import register
from ..per_sample import projected
from ..prediction import Prediction
from ..query import NEGATIVE, Predictions, Queries, Query
from ..step import Estimate, Run, State, Step

FAN_2025 = """@article{fan2025cfgzero,
  title   = {{CFG-Zero*}: Improved Classifier-Free Guidance for Flow Matching Models},
  author  = {Fan, Weichen and Zheng, Amber Yijia and Yeh, Raymond A. and Liu, Ziwei},
  journal = {arXiv preprint arXiv:2503.18886},
  year    = {2025}
}"""


@register("cfg_zero", references=(FAN_2025,), example="cfg_zero(3)")
@dataclass(frozen=True)
class CFGZero(Contrasting):
    r"""CFG-Zero*: classifier-free guidance away from the contrast scaled to the least-squares fit of the prompt.

    On velocities, with a number :math:`a` for each sample:

    .. math:: \tilde v = a v_u + s\,(v_c - a v_u),\qquad a = \frac{\langle v_c, v_u\rangle}{\langle v_u, v_u\rangle}

    so that what is added is perpendicular to :math:`v_u`; and :math:`\tilde v = 0` in the first steps of the schedule
    (zero-init): x stays where it is, and time goes on.

    On an estimate :math:`\hat v` that earlier rules already improved: :math:`\hat v + (s - 1)(v_c - a v_u)`.

    Args:
        scale: s, any number up to 1e6 in size; 1 is no guidance.
        zero_steps: how many steps at the start of the schedule have velocity 0. The authors zero one step, or 4% of
            them, from text, and none or one from pictures. Only for flow models.
        against: the query that :math:`v_u` answers, as in `CFG`.

    Queries: "positive" and `against`, hence 2 evaluations a step; none of its own at ``scale=1`` and in zeroed steps,
    in which pipelines evaluate the prompt all the same.

    State: none. Space: velocity, as the paper has it.

    Raises:
        RuleError: when a run begins, steps are to be zeroed and the network is no flow model: a noise of 0 or a clean
            sample of 0 is not a step that goes nowhere.

    References:
        Fan, Zheng, Yeh & Liu, "CFG-Zero*: Improved Classifier-Free Guidance for Flow Matching Models",
        arXiv:2503.18886, Algorithm 1. Their code and diffusers' add 1e-8 to the denominator. Their code counts the
        zeroed steps from 0: its ``zero_steps=1`` zeroes two.

    >>> from guidestack import CFGZero
    >>> print(CFGZero(4, zero_steps=1))
    cfg_zero(4, zero_steps=1)
    """

    space: ClassVar[Any] = "velocity"
    neutral_values: ClassVar[Mapping[str, Any] | None] = {"scale": 1.0, "zero_steps": 0}

    scale: float
    zero_steps: int = 0
    against: Query | str = NEGATIVE

    def __post_init__(self) -> None:
        super().__post_init__()
        whole(self, "zero_steps", 0)

    def init(self, run: Run) -> State:
        """Check that steps are zeroed for a flow model only; the rule has no state.

        Raises:
            RuleError: steps are to be zeroed, and the network is no flow model.
        """
        if self.zero_steps and run.emits is not None and run.emits.name != "flow":
            raise RuleError(
                f"{self}: zero_steps is for flow models, whose velocity of 0 leaves x where it is; this network emits "
                f"{run.emits.name!r}: leave zero_steps out"
            )
        return ()

    @property
    def off(self) -> bool:
        """Whether the rule guides at no step: whether the scale is 1, with or without zeroed steps."""
        return self.scale == 1

    def queries(self, step: Step, state: State) -> Queries:
        """Return the prompt and the contrast after the zeroed steps, and no queries in them."""
        return {} if step.index < self.zero_steps else super().queries(step, state)

    def update(self, estimate: Estimate, predictions: Predictions, step: Step, state: State) -> tuple[Estimate, State]:
        """Set the velocity to 0 in the zeroed steps, and guide in the others."""
        if step.index < self.zero_steps:
            return estimate.replace("velocity", torch.zeros_like(estimate.read("velocity"))), state
        return super().update(estimate, predictions, step, state)

    def guided(
        self, estimate: Estimate, c: Prediction, u: Prediction, step: Step, state: State
    ) -> tuple[Estimate, State]:
        """Add the part of the prompt's velocity that is perpendicular to the contrast's."""
        return estimate.plus("velocity", projected(c.velocity, u.velocity, keep=0), self.scale - 1), state
