"""Contrasting: the base class of rules that guide away from one contrast, by a scale of which 1 is no guidance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from .fields import number, set_field
from .prediction import Prediction
from .query import POSITIVE, Predictions, Query
from .rule import Rule, at_neutral
from .step import Estimate, StateT, Step


class Contrasting(Rule[StateT]):
    """Base class of rules that guide the prompt's prediction away from one contrast.

    A subclass is a frozen dataclass that declares `scale` and `against`, or overrides `contrast`, and implements
    `guided`. At its neutral values it asks for nothing and leaves the estimate as it is, to the bit.
    """

    neutral_values: ClassVar[Mapping[str, Any] | None] = {"scale": 1.0}

    scale: float
    against: Query | str

    def __post_init__(self) -> None:
        number(self, "scale")
        set_field(self, "against", Query.of(self.against))

    @property
    def off(self) -> bool:
        """Whether the rule does nothing: its parameters are at their neutral values."""
        return at_neutral(self)

    @property
    def contrast(self) -> Query:
        """The query that the rule guides away from: its parameter `against`."""
        return Query.of(self.against)

    def asks(self) -> frozenset[Query]:
        """The prompt and the contrast, unless the rule does nothing."""
        return frozenset() if self.off else frozenset({POSITIVE, self.contrast})

    def update(
        self, estimate: Estimate, predictions: Predictions, step: Step, state: StateT
    ) -> tuple[Estimate, StateT]:
        """Return what `guided` makes of the two predictions, or the estimate as it is where the rule does nothing."""
        if self.off:
            return estimate, state
        return self.guided(estimate, predictions[POSITIVE], predictions[self.contrast], step, state)

    def guided(
        self, estimate: Estimate, c: Prediction, u: Prediction, step: Step, state: StateT
    ) -> tuple[Estimate, StateT]:
        """Return the improved estimate, from the prompt's prediction `c` and the contrast's `u`, and the new state."""
        raise NotImplementedError
