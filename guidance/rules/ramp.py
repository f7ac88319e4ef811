"""Scales that change over the steps of a run (Wang et al. 2024)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from ..errors import CompositionError
from ..fields import choice, number
from ..notation.registry import register
from ..prediction import Prediction
from ..query import Edits, Predictions, Queries, RowMask
from ..rule import Rule, Stack, Wrapper
from ..step import Estimate, State, Step

WANG_2024 = """@article{wang2024analysis,
  title   = {Analysis of Classifier-Free Guidance Weight Schedulers},
  author  = {Wang, Xi and Dufour, Nicolas and Andreou, Nefeli and Cani, Marie-Paule and Fern{\\'a}ndez Abrevaya,
             Victoria and Picard, David and Kalogeiton, Vicky},
  journal = {Transactions on Machine Learning Research},
  year    = {2024},
  note    = {arXiv:2404.13040}
}"""

SHAPES: Mapping[str, Callable[[float], float]] = {
    "linear": lambda q: 2 * q,
    "cosine": lambda q: 1 - math.cos(math.pi * q),
    "linear-down": lambda q: 2 * (1 - q),
    "cosine-down": lambda q: 1 + math.cos(math.pi * q),
}
"""Weights over the share q of a run that is done: each has the mean 1."""


def scaled(rule: Rule, weight: float) -> Rule:
    """`rule` as far from doing nothing as `weight` times its own parameters; in a stack and in wrappers each rule.

    What changes is the scale, or what a rule without one is turned off by; rules that reshape others stay as they are.
    """
    if isinstance(rule, Stack):
        return Stack(*(scaled(part, weight) for part in rule.rules))
    if isinstance(rule, Wrapper):
        return dataclasses.replace(rule, rule=scaled(rule.rule, weight))
    changed = {name: off + (getattr(rule, name) - off) * weight for name, off in _changing(rule)}
    return dataclasses.replace(rule, **changed)  # type: ignore[type-var]


def _changing(rule: Rule) -> Iterator[tuple[str, float]]:
    """The parameters of `rule` itself that change, and where they turn it off."""
    off = {} if rule.refines or isinstance(rule, Stack | Wrapper) else rule.neutral_values or {}
    for name, value in off.items():
        if isinstance(value, float) and (name == "scale" or "scale" not in off):
            yield name, value


@register("ramp", references=(WANG_2024,), example="ramp(cfg(3), 'linear')")
@dataclass(frozen=True)
class Ramp(Wrapper):
    r"""Apply `rule` with a scale that changes over the steps, by default with the same mean.

    With f the shape and :math:`s_0` the scale at which the rule does nothing (1 for `CFG`), at step i of N:

    .. math:: s_i = s_0 + (s - s_0)\,\max\big(f(q),\ floor\big),\qquad q = (i + \tfrac12)/N

    ===================  ======================  =======================
    shape                f(q)                    from start to end
    ===================  ======================  =======================
    ``"linear"``         2q                      0 to 2
    ``"cosine"``         1 - cos(pi q)           0 to 2
    ``"linear-down"``    2 (1 - q)               2 to 0
    ``"cosine-down"``    1 + cos(pi q)           2 to 0
    ===================  ======================  =======================

    In the middle of the steps, as here, every shape has the mean 1 in a run of any length: without a floor the mean of
    the scales is s.

    Args:
        rule: a rule with a scale, or with other numbers that turn it off, which then change: or a stack or a wrapper of
            such rules. Rules that reshape others are not changed.
        shape: one of the above.
        floor: the smallest f, >= 0: the paper's clamped schedules; it raises the mean.

    Queries: those of the rule.

    State: that of the rule.

    Raises:
        CompositionError: the rule has no parameter that can change in this way.
        RuleError: the rule refuses the largest of the scales.

    References:
        Wang et al., "Analysis of Classifier-Free Guidance Weight Schedulers", arXiv:2404.13040. Its shapes are
        functions of the training time t, these are functions of the step; its weight is s - 1.

    >>> from guidestack import CFG, Ramp
    >>> [round(Ramp(CFG(3), "linear").at(index, 4).scale, 2) for index in range(4)]
    [1.5, 2.5, 3.5, 4.5]
    """

    shape: str = "linear"
    floor: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        choice(self, "shape", tuple(SHAPES))
        number(self, "floor", 0.0)
        if not any(name for part in self.rule.parts() for name in _changing(part)):
            raise CompositionError(
                f"ramp changes a scale over the steps, and {self.rule} has none that does; "
                "put it around a rule such as cfg(4)"
            )
        scaled(self.rule, max(2.0, self.floor))  # whether the rules take the largest

    def at(self, index: int, steps: int) -> Rule:
        """The rule with the scale of step `index` of a run of so many steps."""
        return scaled(self.rule, max(SHAPES[self.shape]((index + 0.5) / steps), self.floor))

    def _now(self, step: Step) -> Rule:
        return self.at(step.index, step.run.steps)

    def edits(self, step: Step, state: State) -> Edits:
        """The edits of the prompt's own pass by the rule with the scale of this step."""
        return self._now(step).edits(step, state)

    def queries(self, step: Step, state: State) -> Queries:
        """Return the queries of the rule with the scale of this step."""
        return self._now(step).queries(step, state)

    def unasked(self, step: Step, state: State) -> RowMask | None:
        """Return the samples for which the rule needs no prediction."""
        return self._now(step).unasked(step, state)

    def update(self, estimate: Estimate, predictions: Predictions, step: Step, state: State) -> tuple[Estimate, State]:
        """Apply the rule with the scale of this step."""
        return self._now(step).update(estimate, predictions, step, state)

    def away(self, predictions: Predictions, step: Step, state: State) -> tuple[Prediction, RowMask | None] | None:
        """Return what the rule guides away from, with the scale of this step."""
        return self._now(step).away(predictions, step, state)
