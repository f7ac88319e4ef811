"""Which rules go with which: every pair tried on the oracle.

What cannot work is refused when a stack is made (`stack.Stack`, the wrappers' constructors); this file only looks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..errors import CompositionError
from ..notation.registry import rules
from ..notation.text import parse
from ..rule import Rule, Wrapper
from .checks import Oracle, oracle_run

BEHIND = "cfg(3)"
"""What a rule that refines others is tried behind, and what a wrapper is tried around."""

STACKS = (
    "during(adaptive(apg(3, against='independent:tokens'), threshold=0.95, space='denoised'), sigma=(0.5, 6))"
    " | rescale(0.7)",
    "perpneg(0.6) | renoise() | rescale(0.5)",
    "adaptive(perpneg(3), threshold=0.95, space='denoised') | tsg(2, strength=0.8)",
    "during(cfgpp(0.6), sigma=(0.5, 20)) | cfg(2, against='positive+time(0.8)')",
    "prefix(icg(3) | rescale(0.7), 3) | apg(2)",
    "apg(3, against='positive@weak') | cfg(2) | rescale(0.7)",
)
"""Stacks of three and more."""


@dataclass(frozen=True)
class Outcome:
    """The result of trying one combination of rules.

    Attributes:
        text: the stack.
        evaluations: of each sample of the oracle's batch over its steps; empty if the stack was refused.
        reason: why it was refused, or "".
    """

    text: str
    evaluations: tuple[int, ...]
    reason: str = ""

    @property
    def works(self) -> bool:
        """Whether it was not refused."""
        return not self.reason


def attempt(text: str) -> Outcome:
    """Make the stack with this text and run it over the oracle's levels."""
    try:
        stack = parse(text)
    except CompositionError as error:
        return Outcome(text, (), str(error))
    return Outcome(text, tuple(oracle_run(stack, Oracle()).run.report.evaluations))


def _shown() -> Iterator[Rule]:
    """Every registered rule that has an example and may stand beside others, as its first example has it."""
    for entry in rules():
        if entry.examples and not entry.rule.whole_stack:
            yield next(part for part in parse(entry.examples[0]).parts() if type(part) is entry.rule)


def standing() -> list[str]:
    """An example of each rule that stands by itself."""
    return [str(rule) for rule in _shown() if not isinstance(rule, Wrapper)]


def wrappers() -> list[str]:
    """An example of each rule around another, whose place is ``{}``."""
    return [str(rule).replace(str(rule.rule), "{}", 1) for rule in _shown() if isinstance(rule, Wrapper)]


def pair(first: str, second: str) -> str:
    """The text of one rule behind another."""
    return f"{first} | {second}"


def around(wrapper: str, inner: str) -> str:
    """The text of a wrapper around a rule; around one that refines others, behind a rule for it to refine."""
    text = wrapper.format(inner)
    return f"{BEHIND} | {text}" if parse(inner).refines else text


def nested(outer: str, inner: str) -> str:
    """The text of a wrapper around another around a rule."""
    return outer.format(inner.format(BEHIND))


def every() -> Iterator[str]:
    """The text of every combination in the tables."""
    for first in standing():
        for second in standing():
            yield pair(first, second)
    for wrapper in wrappers():
        for inner in standing():
            yield around(wrapper, inner)
        for other in wrappers():
            yield nested(wrapper, other)
    yield from STACKS
