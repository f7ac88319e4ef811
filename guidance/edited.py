"""Edited: the base class of rules that guide away from the network's own prediction under an edit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from .contrasting import Contrasting
from .fields import block_names, number
from .per_sample import added
from .prediction import Prediction
from .query import Perturbation, Query
from .step import Estimate, StateT, Step

Blocks = str | int | Sequence[str | int] | None
"""Names of blocks, as rules are given them; `block_names` makes one text of them."""


def named(blocks: Blocks) -> int | str:
    """The blocks of a rule as a `Perturbation` has them: 0 where none are named."""
    return str(blocks) if blocks is not None else 0


class Edited(Contrasting[StateT]):
    r"""Base class of rules that guide away from the edited network's prediction for the same prompt.

    .. math:: \tilde D = D + s\,(D_c - D_{\mathrm{edited}})

    The scale s multiplies the difference that is added, whatever stands before the rule: 0 is off, and rules of this
    kind commute. A subclass is a frozen dataclass with the field `scale`, and `blocks` where its edit has a place, and
    overrides `edit`.
    """

    neutral_values: ClassVar[Mapping[str, Any] | None] = {"scale": 0.0}

    scale: float

    def __post_init__(self) -> None:
        number(self, "scale")
        if hasattr(self, "blocks"):
            block_names(self, "blocks")

    @property
    def edit(self) -> Perturbation:
        """The edit of the network whose prediction the rule guides away from."""
        raise NotImplementedError

    @property
    def contrast(self) -> Query:
        """The query that the rule guides away from: the prompt, on the edited network."""
        return Query("positive", perturbation=self.edit)

    def guided(
        self, estimate: Estimate, c: Prediction, u: Prediction, step: Step, state: StateT
    ) -> tuple[Estimate, StateT]:
        """Add `scale` times the difference to the estimate, in the network's own output and type."""
        return estimate.replace("any", added(estimate.read("any"), c.native - u.native, self.scale)), state
