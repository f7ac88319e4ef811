"""Edited: what the rules have in common that lead away from the network's own answer under an edit."""

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
    r"""A rule that leads away from what the same network answers to the same prompt while it is edited.

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
        """What is done to the network for one evaluation."""
        raise NotImplementedError

    @property
    def contrast(self) -> Query:
        """The prompt, asked of the edited network, which the rule leads away from."""
        return Query("positive", perturbation=self.edit)

    def guided(
        self, estimate: Estimate, c: Prediction, u: Prediction, step: Step, state: StateT
    ) -> tuple[Estimate, StateT]:
        """The estimate and `scale` times the difference, on the network's own output and in its type."""
        return estimate.replace("any", added(estimate.read("any"), c.native - u.native, self.scale)), state
