"""Rectified-CFG++: guidance from a second round, where the prompt's own step would lead (Saini et al. 2025)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from ..errors import RuleError
from ..fields import SMALLEST, number, set_field
from ..notation.registry import register
from ..prediction import Level
from ..query import NEGATIVE, POSITIVE, Predictions, Query
from ..rule import Rule
from ..step import Estimate, Run, Step
from ..turn import Look, Sight

SAINI_2025 = """@inproceedings{saini2025rectified,
  title     = {{Rectified-CFG++} for Flow Based Models},
  author    = {Saini, Shreshth and Gupta, Shashank and Bovik, Alan C.},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2025},
  note      = {arXiv:2510.07631}
}"""


class Ahead(NamedTuple):
    """What `RectifiedCFG` saw ahead.

    Attributes:
        x: the samples where the prompt's own step leads; None before the first turn.
        difference: of the two velocities there; None before the second.
    """

    x: Tensor | None
    difference: Tensor | None


@register("rectified_cfg", references=(SAINI_2025,), example="rectified_cfg(2)")
@dataclass(frozen=True)
class RectifiedCFG(Rule[Ahead]):
    r"""Rectified-CFG++: the prompt's velocity at x plus the guidance difference at the point that it leads to.

    With :math:`\tilde x` the samples after the sampler's step under the prompt alone, or a share of it, at its level
    :math:`\sigma'`:

    .. math:: \tilde v = v_c(x, \sigma) + s\,\big(v_c(\tilde x, \sigma') - v_u(\tilde x, \sigma')\big)

    so that guidance is asked for on the prompt's own path and not where guidance led.

    Args:
        scale: s, the factor of the difference, any number up to 1e6 in size; 0 is off. The same difference at x would
            be CFG of scale 1 + s.
        against: the query that :math:`v_u` answers.
        ahead: how far ahead of x the difference is evaluated, as a share of the step, in (0, 1]: 1 as in the authors'
            code, 0.5 as in the paper's algorithm. Below 1 the step there is one of Euler's method.

    Queries: in turns "positive" at x, then "positive" and `against` at :math:`\tilde x`; the prompt's answer at x is
    not evaluated again: 3 evaluations a step. The authors' code spends 4.

    State: the samples ahead and the difference there, of the step. Space: velocity.

    Raises:
        RuleError: when a run begins, the network is no flow model.

    Samplers that evaluate once a step and remember nothing; the evaluation ahead is at another noise level than the
    step's.

    References:
        Saini, Gupta & Bovik, "Rectified-CFG++ for Flow Based Models", arXiv:2510.07631. Its factor is
        :math:`\lambda_{max} (1 - t)^\gamma`; here, as in their code, it is constant. The small noise that both may add
        is left out. At the point ahead, their code gives the network the time t + dt with t in thousandths and dt not,
        which is about t; here the network gets the time of :math:`\tilde x`.

    >>> from guidestack import RectifiedCFG
    >>> print(RectifiedCFG(2))
    rectified_cfg(2)
    """

    space: ClassVar[Any] = "velocity"
    neutral_values: ClassVar[Mapping[str, Any] | None] = {"scale": 0.0}

    scale: float
    against: Query | str = NEGATIVE
    ahead: float = 1.0

    def __post_init__(self) -> None:
        number(self, "scale")
        number(self, "ahead", SMALLEST, 1.0)
        set_field(self, "against", Query.of(self.against))

    @property
    def contrast(self) -> Query:
        """The query that the rule guides away from, at the point ahead of x."""
        return Query.of(self.against)

    @property
    def takes_turns(self) -> bool:
        """Whether the rule evaluates at a point ahead of x: whether the scale is not 0."""
        return self.scale != 0

    def init(self, run: Run) -> Ahead:
        """Check that the network is a flow model, and return the state before the first step, which holds nothing.

        Raises:
            RuleError: the network is no flow model.
        """
        if self.scale and run.emits is not None and run.emits.name != "flow":
            raise RuleError(f"{self} is for flow models, and this network emits {run.emits.name!r}; try cfgpp(0.6)")
        return Ahead(None, None)

    def asks(self) -> frozenset[Query]:
        """Return the prompt and the contrast, which the rule asks for in its turns."""
        return frozenset({POSITIVE, self.contrast}) if self.scale else frozenset()

    def queries(self, step: Step, state: Ahead) -> dict[Query, None]:
        """Return no queries: the rule asks in its turns, and reads nothing but the prompt at x."""
        return {}

    def turns(self, step: Step, state: Ahead) -> int:
        """Return the number of turns: one for the prompt's own step, one at the point that it leads to."""
        return 2 if self.scale else 0

    def look(self, x: Tensor, step: Step, state: Ahead) -> Look:
        """Ask for the prompt at x in the first turn, and for prompt and contrast at the point ahead in the second."""
        if step.turn == 1:
            return Look({POSITIVE: None})
        return Look(dict.fromkeys((POSITIVE, self.contrast)), x=state.x, level=self._level(step))

    def turn(self, x: Tensor, sight: Sight, step: Step, state: Ahead) -> tuple[Tensor, Ahead]:
        """Return x as it is, and the state with the point ahead or with the difference there."""
        if step.turn == 1:
            c = sight.predictions[POSITIVE]
            if self.ahead == 1:
                return x, Ahead(sight.steps(Estimate(c)), None)
            return x, Ahead(x + (self._level(step).sigma - step.level.sigma) * c.velocity, None)
        c, u = sight.predictions[POSITIVE], sight.predictions[self.contrast]
        return x, Ahead(None, c.minus(u, "velocity"))

    def update(self, estimate: Estimate, predictions: Predictions, step: Step, state: Ahead) -> tuple[Estimate, Ahead]:
        """Add the difference at the point ahead to the estimate at x."""
        if not self.scale or state.difference is None:
            return estimate, state
        return estimate.plus("velocity", state.difference, self.scale), state

    def _level(self, step: Step) -> Level:
        """The level at which the difference is looked at."""
        after = step.after or Level(1.0, 0.0, step.level.path)
        if self.ahead == 1:
            return after
        return Level.flow(step.level.sigma + self.ahead * (after.sigma - step.level.sigma))
