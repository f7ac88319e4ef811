"""The stacks that a search tries: plans of `Schedule` around the reference, and what is known to be worth a try."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...guidance.errors import CompositionError, GuidestackError, InputError, RuleError
from ...guidance.move import check_still
from ...guidance.plan import SchedulePoint, plan
from ...guidance.rule import Stack
from ...guidance.rules import AdaptiveGuidance, LinearAG, Schedule
from ...guidance.rules.schedule import CONDITIONAL, GUIDED, REUSED, SKIPPED

NEVER = 2.0
"""A cosine that is never reached: no sample stops by itself."""
THRESHOLDS = (NEVER, 0.9, 0.95, 0.98, 0.99, 0.995)
ORDERS = (0, 1)
SPACES = ("velocity", "noise", "denoised")
ORDER, SKIP_ORDER, SPACE, THRESHOLD = "order", "skip_order", "space", "threshold"

Choices = dict[str, Any]
"""One value for each of `Space.choices`."""


@dataclass(frozen=True)
class Space:
    """All stacks that a search may try.

    Args:
        reference: the stack whose images are wanted for less.
        points: the evaluations of the sampler.
        letters: what a step may be.
        adaptive: whether the reference guides away from something that a cosine can be taken with.
    """

    reference: Stack
    points: tuple[SchedulePoint, ...]
    letters: tuple[str, ...]
    adaptive: bool

    @classmethod
    def of(cls, reference: Stack, points: Sequence[SchedulePoint], runs: Callable[[Stack], None]) -> Space:
        """The space around a reference.

        Args:
            reference: the stack.
            points: the evaluations of the sampler.
            runs: raises a `GuidestackError` for a stack that the model cannot run.

        Raises:
            InputError: nothing can be left out of the reference, or the model runs no schedule around it.
            CompositionError: a rule of it takes turns, which a schedule does not reach.
        """
        check_still(reference, "a schedule of letters")
        for part in reference.parts():
            if part.whole_stack:
                raise InputError(
                    f"the reference {reference} is a schedule of its own; give what it stands around, such as cfg(4)"
                )
        letters = [GUIDED]
        if plan(reference, points).evaluations > len(points):
            letters += [CONDITIONAL, REUSED]
        reason = ""
        try:
            runs(Stack(Schedule(reference, f"{GUIDED} {SKIPPED}*")))
            letters.append(SKIPPED)
        except GuidestackError as error:
            reason = str(error)
        if letters == [GUIDED]:
            raise InputError(f"nothing can be left out of {reference}, which costs 1 evaluation a step: {reason}")
        try:
            AdaptiveGuidance(reference, 0.9, "denoised")
            adaptive = CONDITIONAL in letters
        except CompositionError:
            adaptive = False
        return cls(reference, tuple(points), tuple(letters), adaptive)

    @property
    def steps(self) -> int:
        """Number of steps of a run."""
        return max(point.step for point in self.points) + 1

    @property
    def choices(self) -> dict[str, tuple[Any, ...]]:
        """What there is to choose, by name: a letter for each step, and how a schedule goes by earlier steps."""
        more: dict[str, tuple[Any, ...]] = {SKIP_ORDER: ORDERS} if SKIPPED in self.letters else {}
        if REUSED in self.letters:
            more |= {ORDER: ORDERS}
        if more:
            more |= {SPACE: SPACES}
        if self.adaptive:
            more |= {THRESHOLD: THRESHOLDS}
        return {**{letter_of(step): self.letters for step in range(self.steps)}, **more}

    def stack(self, chosen: Mapping[str, Any]) -> Stack:
        """The stack of some choices; the same for choices that mean the same."""
        letters = "".join(chosen[letter_of(step)] for step in range(self.steps))
        rule: Any = self.reference
        if chosen.get(THRESHOLD, NEVER) != NEVER:
            rule = AdaptiveGuidance(self.reference, chosen[THRESHOLD], "denoised", "guided")
        letters = possible(letters)
        if set(letters) == {GUIDED}:
            return rule if isinstance(rule, Stack) else Stack(rule)
        used = {ORDER: REUSED in letters, SKIP_ORDER: SKIPPED in letters}
        used[SPACE] = any(used.values())
        named = {name: chosen[name] for name, needed in used.items() if needed}
        return Stack(Schedule(rule, letters, **named))

    def cost(self, stack: Stack) -> int:
        """Evaluations of a sample; at most so many where a rule decides as it goes."""
        return plan(stack, self.points).evaluations

    @property
    def least(self) -> int:
        """Evaluations of the cheapest plan there is."""
        first = CONDITIONAL if CONDITIONAL in self.letters else GUIDED
        rest = SKIPPED if SKIPPED in self.letters else first
        return self.cost(self.stack(self._completed(first + rest * (self.steps - 1), {})))

    def informed(self) -> Iterator[Choices]:
        """What is known to be worth a try, likely ones first."""
        seen: set[str] = set()
        for letters, more in self._informed():
            if set(letters) <= set(self.letters):
                chosen = self._completed(letters, more)
                if (text := str(self.stack(chosen))) not in seen:
                    seen.add(text)
                    yield chosen

    def _completed(self, letters: str, more: Mapping[str, Any]) -> Choices:
        usual: Choices = {ORDER: 1, SKIP_ORDER: 1, SPACE: SPACES[0], THRESHOLD: NEVER, **more}
        chosen = {letter_of(step): letter for step, letter in enumerate(letters)}
        return chosen | {name: usual[name] for name in self.choices if name in usual}

    def _informed(self) -> Iterator[tuple[str, Choices]]:
        n = self.steps
        half = n // 2
        for space in SPACES[:2]:  # every second step
            yield spaced(n, n - half), {SPACE: space}
            yield spaced(n, n - half)[:-1] + REUSED, {SPACE: space}  # half of the evaluations, if the steps are odd
        yield spaced(n, n - half)[:-1] + CONDITIONAL, {}
        for count in (2, 3):  # fewer; and closer to one another late
            for power, space in ((1.0, SPACES[0]), (0.7, SPACES[0]), (1.0, SPACES[2])):
                yield spaced(n, n // count, power=power), {SPACE: space}
        yield spaced(n, n // 3, power=0.5), {}
        yield spaced(n, n // 4, power=0.7), {}
        yield _cycled("gr", n), {}
        yield _cycled("gsrs", n), {}
        yield spaced(n, n - half, GUIDED + REUSED), {ORDER: 0}
        first = round(0.75 * n)
        yield spaced(first, math.ceil(first / 2)) + _cycled("sc", n - first), {}
        for order in ORDERS:  # a line through two differences is not to be drawn far
            yield spaced(first, math.ceil(first / 2)) + _cycled("sr", n - first), {ORDER: order}
        for share in (0.75, 0.5):  # Adaptive Guidance without measuring
            yield GUIDED * round(share * n) + CONDITIONAL * (n - round(share * n)), {}
        if self.adaptive:
            yield GUIDED * n, {THRESHOLD: THRESHOLDS[2]}
            yield spaced(n, n - half), {THRESHOLD: THRESHOLDS[3]}
        yield _cycled("gr", half) + CONDITIONAL * (n - half), {}  # LinearAG's policy
        third = n // 3  # an interval
        yield CONDITIONAL * (third // 2) + GUIDED * (n - third) + CONDITIONAL * (third - third // 2), {}


def letter_of(step: int) -> str:
    """The name under which a search chooses the letter of a step."""
    return f"step{step}"


def possible(letters: str) -> str:
    """The letters, guided where there is nothing yet to go by: what a run does with them."""
    first = next((place for place, letter in enumerate(letters) if letter in GUIDED + CONDITIONAL), len(letters))
    letters = letters[:first].replace(REUSED, GUIDED).replace(SKIPPED, GUIDED) + letters[first:]
    guided = letters.find(GUIDED)
    reused = letters.find(REUSED)
    while reused >= 0 and (guided < 0 or reused < guided):
        letters = letters[:reused] + GUIDED + letters[reused + 1 :]
        guided, reused = letters.find(GUIDED), letters.find(REUSED)
    return letters


def spaced(steps: int, evaluated: int, letters: str = GUIDED, power: float = 1.0) -> str:
    """So many evaluated steps from the first to the last, and skipped ones between.

    Args:
        steps: of the run.
        evaluated: number of the steps that are evaluated.
        letters: of the evaluated ones, in turn.
        power: 1 for even distances; below 1 for steps that are closer late, above for steps that are closer early.

    >>> spaced(7, 3), spaced(7, 4, "gr"), spaced(9, 4, power=0.5)
    ('gssgssg', 'gsrsgsr', 'gssssgsgg')
    """
    if evaluated < 2:
        return (GUIDED + SKIPPED * (steps - 1))[:steps]
    places = [round((steps - 1) * (index / (evaluated - 1)) ** power) for index in range(evaluated)]
    found = [SKIPPED] * steps
    for index, place in enumerate(places):
        found[place] = letters[index % len(letters)]
    return "".join(found)


def _cycled(letters: str, steps: int) -> str:
    return (letters * steps)[:steps]


def linear_stacks(reference: Stack, coefficients: str | None, steps: int) -> Iterator[Stack]:
    """LinearAG around the reference, where there are coefficients for it: the paper's policy, and longer alternation.

    Raises:
        RuleError: it takes no such reference.
    """
    if coefficients is None:
        return
    late = ("ge" * steps)[:steps]
    for policy in ("paper", late, late[: 3 * steps // 4] + "c" * (steps - 3 * steps // 4)):
        try:
            yield Stack(LinearAG(reference, coefficients, policy))
        except RuleError as error:
            raise RuleError(f"--linear-ag {coefficients}: {error}") from None
