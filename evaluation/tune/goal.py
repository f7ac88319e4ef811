"""What a search is after: how like a stack's images must be to the reference's, and how little it may cost."""

from __future__ import annotations

import hashlib
import math
import re
from dataclasses import dataclass

from ...guidance.errors import GuidestackError, InputError, shown
from ...guidance.notation.presets import read
from ..metrics import PairMetric, parse_metric

DEFAULT = "feature_distance"
LONGEST = 80  # characters of a name
BOUND = re.compile(r"\s*(?P<metric>[^<>]+?)\s*(?P<sign><=|>=)\s*(?P<number>[-+.\deE]+)\s*")


@dataclass(frozen=True)
class Goal:
    """The goal of a tuning: how alike images must be, and what a sample may cost.

    Args:
        metric: the likeness, as `parse_metric` reads it.
        bound: of its mean, where a number was given.
        than: text of the stack than which the likeness may be no worse, where one was given.
        evaluations: that a sample may cost at most; None for no bound.
    """

    metric: str
    bound: float | None = None
    than: str | None = None
    evaluations: float | None = None

    @property
    def sign(self) -> int:
        """1 where more of the metric is more alike, -1 where less is."""
        return 1 if likeness(self.metric).better == "up" else -1

    @property
    def name(self) -> str:
        """What the files of this goal's results are called after."""
        return path_name(self.parts)

    @property
    def parts(self) -> list[str]:
        """The words of its name: others for another goal."""
        parts = [self.metric]
        if self.bound is not None:
            parts += ["at-least" if self.sign > 0 else "at-most", repr(self.bound)]
        if self.than is not None:
            parts += ["as", self.than]
        if self.evaluations is not None:
            parts += ["in", f"{self.evaluations:.12g}"]
        return parts

    def __str__(self) -> str:
        wanted = []
        if self.bound is not None:
            wanted.append(f"{self.metric} {'>=' if self.sign > 0 else '<='} {self.bound:g}")
        if self.than is not None:
            wanted.append(f"{self.metric} no worse than that of {self.than}")
        if not wanted:
            return f"{self.evaluations:g} evaluations at most, the most alike by {self.metric}"
        if self.evaluations is not None:
            wanted.append(f"{self.evaluations:g} evaluations at most")
        return " and ".join(wanted)


def path_name(parts: list[str]) -> str:
    """A name that is fit for a path, of some words: another one for others."""
    plain = re.sub(r"[^A-Za-z0-9_.+-]+", "-", "-".join(parts)).strip("-")
    if plain == "-".join(parts) and len(plain) <= LONGEST:
        return plain
    return f"{plain[:LONGEST].rstrip('-')}-{hashlib.sha256(repr(parts).encode()).hexdigest()[:6]}"


def likeness(text: str) -> PairMetric:
    """The metric of pairs that `text` names.

    Raises:
        InputError: it names none.
    """
    metric = parse_metric(text)
    if not isinstance(metric, PairMetric):
        raise InputError(f"{text!r} does not compare an image with another; take feature_distance, ssim or psnr")
    return metric


def read_goal(wanted: str | None, evaluations: float | None, metric: str | None = None) -> Goal:
    """Read the goal of a tuning from options of the command.

    Args:
        wanted: ``"METRIC>=NUMBER"``, ``"METRIC<=NUMBER"``, or a stack than which the likeness may be no worse.
        evaluations: that a sample may cost at most.
        metric: the likeness, where `wanted` does not name one.

    Raises:
        InputError: nothing is asked for, or what is asked for cannot be.
        StackSyntaxError, RuleError: a stack cannot be read.
    """
    if wanted is None and evaluations is None:
        raise InputError(
            "say what is wanted: --likeness 'ssim>=0.97', --likeness STACK for no worse than that stack, or "
            "--evaluations N for the most alike at that cost"
        )
    if evaluations is not None and not 1 <= evaluations < math.inf:
        raise InputError(f"--evaluations is 1 at least: the first step of a run needs one; got {evaluations:g}")
    found = BOUND.fullmatch(wanted or "")
    if wanted is None or not found:
        likeness(metric or DEFAULT)
        return Goal(metric or DEFAULT, than=None if wanted is None else _stack(wanted), evaluations=evaluations)
    name = str(likeness(found["metric"]))
    if metric is not None and str(likeness(metric)) != name:
        raise InputError(f"--metric {metric} and --likeness {wanted!r} name two metrics; keep one of them")
    try:
        number = float(found["number"])
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"--likeness {shown(wanted)}: {shown(found['number'])} is no number")
    goal = Goal(name, number, None, evaluations)
    if found["sign"] != (">=" if goal.sign > 0 else "<="):
        raise InputError(f"--likeness {wanted!r}: of {name}, {'more' if goal.sign > 0 else 'less'} is more alike")
    best = likeness(name).best
    if goal.sign * number > goal.sign * best:
        raise InputError(f"--likeness {wanted!r} cannot be reached: equal images have {name} {best:g}")
    if number == best:
        raise InputError(
            f"--likeness {wanted!r} is of images equal to the reference's, which only the reference makes; ask for less"
        )
    return goal


def _stack(text: str) -> str:
    try:
        return str(read(text))
    except GuidestackError as error:
        raise type(error)(f"--likeness is METRIC>=NUMBER, METRIC<=NUMBER or a stack: {error}") from error
