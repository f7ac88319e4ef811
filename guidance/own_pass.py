"""Edits of the prompt's own pass: rules that change what the network answers to "positive" and ask nothing more."""

from __future__ import annotations

from .query import Predictions, PromptEdit
from .rule import Rule
from .step import Estimate, State, Step


class OwnPass(Rule):
    """A rule that edits the prompt's own pass. Every rule that reads ``"positive"`` reads it edited.

    A subclass is a frozen dataclass and retypes `edit`, with None where its parameters turn it off.
    """

    @property
    def edit(self) -> PromptEdit | None:
        """What the rule edits; None where it does nothing."""
        raise NotImplementedError

    @property
    def guides(self) -> bool:
        """False: the estimate stays the prompt's own, which the network gives edited."""
        return False

    @property
    def own_pass(self) -> tuple[PromptEdit, ...]:
        """`edit`, if it does something."""
        return () if self.edit is None else (self.edit,)

    def update(self, estimate: Estimate, predictions: Predictions, step: Step, state: State) -> tuple[Estimate, State]:
        """The estimate as it is: what the rule does is done in the network."""
        return estimate, state
