"""Edits of the prompt's own pass: rules that change what the network answers to "positive" and ask nothing more."""

from __future__ import annotations

from .query import Predictions, PromptEdit
from .rule import Rule
from .step import Estimate, State, Step


class OwnPass(Rule):
    """Base class of rules that edit the prompt's own pass. Every rule that reads ``"positive"`` reads it edited.

    A subclass is a frozen dataclass and retypes `edit`, with None where its parameters turn it off.
    """

    @property
    def edit(self) -> PromptEdit | None:
        """The rule's edit of the prompt's own pass; None where the rule does nothing."""
        raise NotImplementedError

    @property
    def guides(self) -> bool:
        """False: the rule edits the network's pass, and leaves the estimate as it is."""
        return False

    @property
    def own_pass(self) -> tuple[PromptEdit, ...]:
        """The rule's edit of the prompt's own pass, as a tuple; () where the rule does nothing."""
        return () if self.edit is None else (self.edit,)

    def update(self, estimate: Estimate, predictions: Predictions, step: Step, state: State) -> tuple[Estimate, State]:
        """Return the estimate as it is: the rule acts in the network."""
        return estimate, state
