"""Epsilon scaling (Ning et al. 2024)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ..errors import RuleError
from ..fields import SMALLEST, number
from ..notation.registry import register
from ..query import Predictions
from ..rule import Rule
from ..step import Estimate, State, Step

NING_2024 = """@inproceedings{ning2024elucidating,
  title     = {Elucidating the Exposure Bias in Diffusion Models},
  author    = {Ning, Mang and Li, Mingxiao and Su, Jianlin and Salah, Albert Ali and Ertugrul, Itir Onal},
  booktitle = {International Conference on Learning Representations},
  year      = {2024},
  note      = {arXiv:2308.15321}
}"""


@register("epsilon_scaling", references=(NING_2024,), example="epsilon_scaling(1.005)")
@dataclass(frozen=True)
class EpsilonScaling(Rule):
    r"""Epsilon scaling: the predicted noise divided by a number slightly above 1.

    .. math:: \tilde\epsilon = \hat\epsilon / k

    Errors of sampling add up to noise that networks never saw in training (exposure bias), and make them predict too
    much of it.

    Args:
        divisor: k > 0, at least 1e-9; 1 does nothing. What is best lies between 1 and 1.02 and is smaller for more
            steps.

    Queries: none of its own.

    State: none. Space: noise. At pure noise (alpha 0), where every predicted noise is x, it does nothing.

    References:
        Ning, Li, Su, Salah & Ertugrul, "Elucidating the Exposure Bias in Diffusion Models", arXiv:2308.15321, section
        5: the uniform schedule.

    >>> from guidestack import CFG, EpsilonScaling
    >>> print(CFG(4) | EpsilonScaling(1.01))
    cfg(4) | epsilon_scaling(divisor=1.01)
    """

    space: ClassVar[Any] = "noise"
    neutral_values: ClassVar[Mapping[str, Any] | None] = {"divisor": 1.0}

    divisor: float = 1.005

    def __post_init__(self) -> None:
        if number(self, "divisor") < SMALLEST:
            raise RuleError(f"EpsilonScaling: divisor must be above 0, {SMALLEST:g} at least; got {self.divisor!r}")

    def update(self, estimate: Estimate, predictions: Predictions, step: Step, state: State) -> tuple[Estimate, State]:
        """Divide the estimate's noise by `divisor`; at pure noise return the estimate as it is."""
        if self.divisor == 1 or step.level.alpha == 0:
            return estimate, state
        return estimate.replace("noise", estimate.read("noise") / self.divisor), state
