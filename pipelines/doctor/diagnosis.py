"""The result of the self-test: a frozen value that prints as a page of text."""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass
from typing import Literal

PASS: Literal["pass"] = "pass"
FAIL: Literal["fail"] = "fail"
NOT_MADE: Literal["not made"] = "not made"
Outcome = Literal["pass", "fail", "not made"]


@dataclass(frozen=True)
class Check:
    """One check.

    Args:
        name: one word.
        outcome: "pass", "fail", or "not made" on this pipeline.
        reason: what was found, what is wrong and where to look, or why the check was not made.
    """

    name: str
    outcome: Outcome
    reason: str

    def __str__(self) -> str:
        return f"{self.outcome:<8}  {self.name:<11}  {self.reason}"

    @property
    def alike(self) -> tuple[str, str]:
        """The outcome and its reason (of a check that passed its name): checks that share them are one line."""
        return self.outcome, self.name if self.outcome == PASS else self.reason


@dataclass(frozen=True)
class Trial:
    """One rule on the pipeline.

    Args:
        rule: its text.
        evaluations: network evaluations of a sample at the step with the most; None where it does not run.
        reason: why it does not, or "".
        broken: whether that is a defect, and not a refusal.
    """

    rule: str
    evaluations: int | None
    reason: str = ""
    broken: bool = False


@dataclass(frozen=True)
class Diagnosis:
    """The result of `doctor`: its checks, the rules that it tried, and notes; ``str`` of it is a page.

    Args:
        pipeline: name of the pipeline's class.
        example: what it was run on, in words; "" if it was not run.
        checks: every check, in the order made.
        trials: rules on this pipeline; empty if they were not tried.
        notes: what to know of this pipeline.
    """

    pipeline: str
    example: str
    checks: tuple[Check, ...]
    trials: tuple[Trial, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def failed(self) -> tuple[str, ...]:
        """The names of the checks that failed."""
        return tuple(check.name for check in self.checks if check.outcome == FAIL)

    @property
    def ok(self) -> bool:
        """Whether no check failed."""
        return not self.failed

    def __getitem__(self, name: str) -> Check:
        """The check of that name.

        Raises:
            KeyError: there is none.
        """
        for check in self.checks:
            if check.name == name:
                return check
        raise KeyError(name)

    def __str__(self) -> str:
        lines = [f"{self.pipeline}: {self.example}" if self.example else self.pipeline, ""]
        for _, group in itertools.groupby(self.checks, key=lambda check: check.alike):
            same = list(group)
            lines.append(str(dataclasses.replace(same[0], name=", ".join(one.name for one in same))))
        if self.trials:
            width = max(len(trial.rule) for trial in self.trials)
            lines += ["", f"{'rule':<{width}}  evaluations of a step, or why not"]
            lines += [f"{one.rule:<{width}}  {one.reason or one.evaluations}" for one in self.trials]
        lines += [""] * bool(self.notes) + [f"note: {note}" for note in self.notes]
        return "\n".join([*lines, "", self.summary])

    @property
    def summary(self) -> str:
        """The result in one line: how many checks passed, and the names of those that failed."""
        named = {kind: [one.name for one in self.checks if one.outcome == kind] for kind in (PASS, FAIL, NOT_MADE)}
        parts = [f"{len(named[PASS])} of {len(self.checks)} checks hold"]
        if named[FAIL]:
            parts.append(f"failed: {', '.join(named[FAIL])}")
        if named[NOT_MADE]:
            parts.append(f"not made: {', '.join(named[NOT_MADE])}")
        return "; ".join(parts)
