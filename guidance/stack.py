"""Stack: a sequence of rules, itself a rule."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

from .errors import CompositionError, RuleError, shown
from .fields import set_field
from .prediction import Prediction
from .query import NEGATIVE, NULL, Predictions, Queries, Query, RowMask, united
from .rule import Estimate, Rule, Run, State, Step

DEEPEST = 30
"""Rules inside one another, a stack in a rule counted: what is deeper could be read and not written, or the reverse."""


@dataclass(frozen=True, init=False, repr=False)
class Stack(Rule):
    """Rules applied left to right; ``Stack()`` is the unguided model.

    The first rule improves the network's answer to the prompt, each further one what the rules before it made. What
    several rules ask for is evaluated once. A stack inside a stack is the same as its rules in its place, and equals a
    rule that is all it has.

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
                raise RuleError(f"Stack takes rules, got {shown(rule)}; `parse` reads the text form of a stack")
            flat.extend(rule.rules if isinstance(rule, Stack) else [rule])
        _compatible(flat)
        object.__setattr__(self, "rules", tuple(flat))

    def __eq__(self, other: object) -> bool:
        """Whether the rules are the same: ``Stack(rule) == rule``, too, from either side."""
        if isinstance(other, Stack):
            return self.rules == other.rules
        return self.rules == (other,) if isinstance(other, Rule) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.rules[0]) if len(self.rules) == 1 else hash(self.rules)

    def __repr__(self) -> str:
        return f"Stack({', '.join(map(repr, self.rules))})"

    @property
    def refines(self) -> bool:
        """Whether one of its rules does, with nothing before it to reshape."""
        return _idle(self.rules) is not None

    @property
    def moves(self) -> bool:
        """Whether one of its rules does."""
        return any(rule.moves for rule in self.rules)

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
        _ = self._suffixes  # found now: a compiled `update` cannot take the lock of a cached property
        return tuple(rule.init(run) for rule in self.rules)

    def asks(self) -> frozenset[Query]:
        """Whatever any of the rules may ask for."""
        return frozenset().union(*(rule.asks() for rule in self.rules))

    def queries(self, step: Step, state: State) -> Queries:
        """The union of what the rules ask for."""
        return united(rule.queries(step, own) for rule, own in zip(self.rules, state, strict=True))

    @property
    def skips(self) -> bool:
        """Whether its only rule does."""
        return any(rule.skips for rule in self.rules)

    def unasked(self, step: Step, state: State) -> RowMask | None:
        """Those of its only rule: a rule that skips is the whole stack."""
        return self.rules[0].unasked(step, state[0]) if len(self.rules) == 1 else None

    def update(self, estimate: Estimate, predictions: Predictions, step: Step, state: State) -> tuple[Estimate, State]:
        """Apply the rules in order; each sees the answers it asked for itself."""
        after, traces = [], dict(estimate.traces)
        for rule, own, suffix in zip(self.rules, state, self._suffixes, strict=True):
            answers = predictions.only(rule.queries(step, own), asker=rule)
            estimate, own = rule.update(estimate.without_traces(), answers, step, own)
            traces |= {name + suffix: value for name, value in estimate.traces.items()}
            after.append(own)
        return Estimate(estimate.prediction, estimate.renoise, traces), tuple(after)

    def away(self, predictions: Predictions, step: Step, state: State) -> tuple[Prediction, RowMask | None] | None:
        """For each sample that of the first rule that leads it."""
        found: tuple[Prediction, RowMask | None] | None = None
        for rule, own in zip(self.rules, state, strict=True):
            led = rule.away(predictions, step, own)
            if led is None:
                continue
            if found is None:
                found = led
            elif found[1] is not None:
                rows = None if led[1] is None else found[1] | led[1]
                found = found[0].where(found[1], led[0]), rows
            if found[1] is None:
                break
        return found

    @cached_property
    def _suffixes(self) -> tuple[str, ...]:
        """What is added to the names of each rule's traces: its place, where rules of one kind stand in several."""
        kinds = [{type(part) for part in rule.parts()} for rule in self.rules]
        return tuple(
            f".{place + 1}" if any(own & other for j, other in enumerate(kinds) if j != place) else ""
            for place, own in enumerate(kinds)
        )

    def neutral(self) -> Self:
        """Every rule at its neutral parameters."""
        return type(self)(*(rule.neutral() for rule in self.rules))


def _idle(rules: Sequence[Rule]) -> Rule | None:
    """The first rule that reshapes what rules before it made and has none before it that made anything."""
    for rule in rules:
        if rule.refines:
            return rule
        if rule.moves:
            return None
    return None


def _compatible(rules: Sequence[Rule]) -> None:
    """Refuse a sequence of rules of which one would be ignored or run on what it was not made for.

    Raises:
        CompositionError: naming both parties.
    """
    renoising = [rule for rule in rules if rule.renoises]
    if len(renoising) > 1:
        raise CompositionError(
            f"{renoising[0]} and {renoising[1]} both decide what the sampler re-noises with; keep one of them"
        )
    if len(rules) > 1 and (idle := _idle(rules)):
        other = next((rule for rule in rules if rule.moves), None)
        if other:
            raise CompositionError(
                f"{idle} stands before {other} and has nothing to work on yet; write {other} | {idle}"
            )
        raise CompositionError(
            f"{idle} has nothing to work on beside {next(rule for rule in rules if rule is not idle)}; put a rule such "
            "as cfg(3) before it"
        )
    for rule in rules:
        if len(rules) > 1 and rule.whole_stack:
            other = next(one for one in rules if one is not rule)
            raise CompositionError(
                f"{rule} was made for runs of its own rule alone and cannot stand beside {other}; put {other} inside "
                "it, and fit or tune for that"
            )


def _depth(rule: Rule) -> int:
    """How many rules stand inside one another, the outermost one counted."""
    return 1 + max(map(_depth, rule.inner()), default=0)


def sole(rule: Rule, wrapper: str) -> Rule:
    """The rule that a wrapper wraps: a stack of one rule is that rule, so that equal wrappers compare equal.

    Raises:
        RuleError: `rule` is no rule, or has too many inside one another.
        CompositionError: it must be the whole stack.
    """
    if not isinstance(rule, Rule):
        raise RuleError(f"{wrapper} wraps a rule, got {shown(rule)}")
    if _depth(rule) >= DEEPEST:
        raise RuleError(f"{wrapper}: at most {DEEPEST} rules stand inside one another, and this would be one more")
    for part in rule.parts():
        if part.whole_stack:
            raise CompositionError(
                f"{wrapper} around {part}: it was made for whole runs of its own rule alone; put {wrapper} inside it, "
                "and fit or tune for that"
            )
    return rule.rules[0] if isinstance(rule, Stack) and len(rule.rules) == 1 else rule


@dataclass(frozen=True)
class Wrapper(Rule):
    """A rule around another rule: every member that a subclass does not retype is that of the inner rule.

    A subclass is a frozen dataclass and adds its own parameters. One that applies its rule at some steps only retypes
    `applies`. One that keeps a state of its own beside that of its rule retypes `init`, `rule_state` and `update`.

    Args:
        rule: any rule, a stack included.

    Raises:
        RuleError: `rule` is no rule, or has too many rules inside one another.
        CompositionError: `rule` must be the whole stack.

    >>> from guidestack import CFG, During
    >>> isinstance(During(CFG(4), progress=(0, 0.5)), Wrapper)
    True
    """

    rule: Rule

    def __post_init__(self) -> None:
        set_field(self, "rule", sole(self.rule, type(self).__name__))

    def applies(self, step: Step, state: State) -> bool:
        """Whether the rule is applied at this step; where it is not, nothing is asked and nothing changes."""
        del step, state
        return True

    def rule_state(self, state: State) -> State:
        """The part of the wrapper's state that is the state of its rule; by default all of it."""
        return state

    @property
    def contrast(self) -> Query | None:
        """The contrast of the rule."""
        return self.rule.contrast

    @property
    def renoises(self) -> bool:
        """Whether the rule sets what the sampler re-noises with."""
        return self.rule.renoises

    @property
    def refines(self) -> bool:
        """Whether the rule only reshapes what rules before it made."""
        return self.rule.refines

    @property
    def moves(self) -> bool:
        """Whether the rule changes where the sampler jumps."""
        return self.rule.moves

    @property
    def skips(self) -> bool:
        """Whether the rule may answer a step without any prediction."""
        return self.rule.skips

    def init(self, run: Run) -> State:
        """The state of the rule before the first step."""
        return self.rule.init(run)

    def asks(self) -> frozenset[Query]:
        """Every query that the rule may ask for."""
        return self.rule.asks()

    def queries(self, step: Step, state: State) -> Queries:
        """The queries of the rule where it is applied, none elsewhere."""
        return self.rule.queries(step, self.rule_state(state)) if self.applies(step, state) else {}

    def unasked(self, step: Step, state: State) -> RowMask | None:
        """The samples that the rule needs no prediction for, where it is applied."""
        return self.rule.unasked(step, self.rule_state(state)) if self.applies(step, state) else None

    def update(self, estimate: Estimate, predictions: Predictions, step: Step, state: State) -> tuple[Estimate, State]:
        """The update of the rule where it is applied; elsewhere estimate and state stay as they are."""
        return self.rule.update(estimate, predictions, step, state) if self.applies(step, state) else (estimate, state)

    def away(self, predictions: Predictions, step: Step, state: State) -> tuple[Prediction, RowMask | None] | None:
        """What the rule leads away from where it is applied; None elsewhere."""
        return self.rule.away(predictions, step, self.rule_state(state)) if self.applies(step, state) else None

    def neutral(self) -> Self:
        """The same wrapper around the neutral form of its rule."""
        return dataclasses.replace(self, rule=self.rule.neutral())


def remarks(stack: Rule) -> list[str]:
    """What a user should know of a stack that runs, and may not do what was meant: one line each."""
    if stack.refines:
        return [f"{stack} has nothing to work on: it reshapes what rules before it made; write cfg(...) | {stack}"]
    if (rule := _promptless(stack)) is None:
        return []
    contrast = rule.contrast or NULL
    of = {NEGATIVE: "the negative or empty prompt", NULL: "the empty prompt"}.get(contrast, repr(str(contrast)))
    off = "a scale of 1 or stack()" if rule.neutral_values else "stack()"
    return [
        f"{rule} does not turn guidance off: at scale 0 the picture is that of {of} and not of the prompt; {off} is "
        "without guidance"
    ]


def _promptless(rule: Rule) -> Rule | None:
    """The rule of scale 0 that alone decides where the sampler jumps, so that the prompt counts for nothing."""
    if isinstance(rule, Stack):
        moving = [one for one in rule.rules if one.moves]
        return _promptless(moving[0]) if len(moving) == 1 else None
    if isinstance(rule, Wrapper):
        return _promptless(rule.rule)
    away = getattr(rule, "scale", None) == 0 and (rule.neutral_values or {}).get("scale") != 0
    return rule if away and rule.contrast else None
