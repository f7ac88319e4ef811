"""Stack: a sequence of rules, itself a rule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from .errors import RuleError
from .query import Predictions, Queries, Query, united
from .rule import Estimate, Rule, Run, State, Step


@dataclass(frozen=True, init=False, repr=False)
class Stack(Rule):
    """Rules applied left to right; ``Stack()`` is the unguided model.

    The first rule improves the network's answer to the prompt, each further one what the rules before it made. What
    several rules ask for is evaluated once. A stack inside a stack is the same as its rules in its place.

    Cost: the union of what its rules ask for at a step, and one evaluation at least.

    Args:
        *rules: any number of rules.

    >>> from guidestack import CFG, Rescale, Stack
    >>> stack = Stack(CFG(7.5), Rescale(0.7))
    >>> print(stack)
    cfg(7.5) | rescale(0.7)
    >>> stack == CFG(7.5) | Rescale(0.7)
    True
    """

    rules: tuple[Rule, ...]

    def __init__(self, *rules: Rule) -> None:
        flat: list[Rule] = []
        for rule in rules:
            if not isinstance(rule, Rule):
                raise RuleError(f"Stack takes rules, got {rule!r}; `parse` reads the text form of a stack")
            flat.extend(rule.rules if isinstance(rule, Stack) else [rule])
        renoising = [rule for rule in flat if rule.renoises]
        if len(renoising) > 1:
            raise RuleError(
                f"{renoising[0]} and {renoising[1]} both decide what the sampler re-noises with; keep one of them"
            )
        object.__setattr__(self, "rules", tuple(flat))

    def __repr__(self) -> str:
        return f"Stack({', '.join(map(repr, self.rules))})"

    @property
    def contrast(self) -> Query | None:
        """That of the first rule that has one."""
        return next((rule.contrast for rule in self.rules if rule.contrast), None)

    @property
    def renoises(self) -> bool:
        """Whether one of the rules does."""
        return any(rule.renoises for rule in self.rules)

    def init(self, run: Run) -> State:
        """The states of the rules, in their order."""
        return tuple(rule.init(run) for rule in self.rules)

    def asks(self) -> frozenset[Query]:
        """Whatever any of the rules may ask for."""
        return frozenset().union(*(rule.asks() for rule in self.rules))

    def queries(self, step: Step, state: State) -> Queries:
        """The union of what the rules ask for."""
        return united(rule.queries(step, own) for rule, own in zip(self.rules, state, strict=True))

    def update(self, estimate: Estimate, predictions: Predictions, step: Step, state: State) -> tuple[Estimate, State]:
        """Apply the rules in order; each sees the answers it asked for itself."""
        after = []
        for rule, own in zip(self.rules, state, strict=True):
            answers = predictions.only(rule.queries(step, own), asker=str(rule))
            estimate, own = rule.update(estimate, answers, step, own)
            after.append(own)
        return estimate, tuple(after)

    def neutral(self) -> Self:
        """Every rule at its neutral parameters."""
        return type(self)(*(rule.neutral() for rule in self.rules))


def sole(rule: Rule, wrapper: str) -> Rule:
    """The rule that a wrapper wraps: a stack of one rule is that rule, so that equal wrappers compare equal.

    Raises:
        RuleError: `rule` is no rule.
    """
    if not isinstance(rule, Rule):
        raise RuleError(f"{wrapper} wraps a rule, got {rule!r}")
    return rule.rules[0] if isinstance(rule, Stack) and len(rule.rules) == 1 else rule
