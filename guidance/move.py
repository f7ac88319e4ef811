"""Moves: rules that change x between two evaluations; and the check of loops that do not support turns."""

from __future__ import annotations

from .errors import CompositionError
from .query import Predictions
from .rule import Rule
from .step import Estimate, StateT, Step


class Move(Rule[StateT]):
    """Base class of moves: rules that change x between two evaluations and leave estimates as they are.

    A subclass is a frozen dataclass and implements `turns`, `look` and `turn`; what `turn` does at a level should keep
    the law of the samples there, or lead to the one that its docstring names.
    """

    @property
    def guides(self) -> bool:
        """False: a move leaves estimates as they are."""
        return False

    @property
    def takes_turns(self) -> bool:
        """True: a move changes x in turns."""
        return True

    def update(
        self, estimate: Estimate, predictions: Predictions, step: Step, state: StateT
    ) -> tuple[Estimate, StateT]:
        """Return the estimate and the state as they are."""
        return estimate, state


def turning(rule: Rule) -> Rule | None:
    """The first rule in `rule` that takes turns; None where none does."""
    return next((part for part in rule.parts() if part.takes_turns and not any(part.nested())), None)


def check_still(rule: Rule, where: str) -> None:
    """Refuse rules that take turns, for a loop that does not support turns.

    Args:
        rule: a stack.
        where: what runs it, as a message calls it.

    Raises:
        CompositionError: naming the rule.
    """
    if found := turning(rule):
        raise CompositionError(
            f"{found} evaluates and moves samples between two steps of a sampler, and {where} does not support that; "
            "run it with guidestack.sample or guidestack.guide"
        )
