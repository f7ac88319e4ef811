"""Comparisons in words."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..strength import EQUAL, Comparison, Floats, Stretch

APART, NONE, ONE, OTHER, BOTH = "apart", "none", "one", "other", "both"


@dataclass(frozen=True)
class Verdict:
    """A comparison as the table has it.

    Args:
        metric: its text.
        one, other: the methods.
        where: over which effective scales.
        cost: at which evaluations.
        equal: whether these are equal.
        words: what holds there.
        kind: `ONE` or `OTHER` if it dominates somewhere, `BOTH` if either does, `NONE` if neither, `APART` if they were
            nowhere equally strong.
    """

    metric: str
    one: str
    other: str
    where: str
    cost: str
    equal: bool
    words: str
    kind: str


def number(value: float) -> str:
    """Three significant digits."""
    if not math.isfinite(value):
        return "–"
    text = f"{value:.3g}" if 1e-3 <= abs(value) < 1e4 or not value else f"{value:.2e}"
    return text.replace("-", "−", 1) if value < 0 else text


def span(low: float, high: float) -> str:
    """A range; one number where its ends are the same to three digits."""
    ends = (number(low), number(high))
    return ends[0] if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}"


def verdict(found: Comparison, metric: str, better: str, over: str = "effective scale") -> Verdict:
    """What a comparison says.

    Args:
        found: the comparison.
        metric: its text.
        better: ``"up"``, ``"down"`` or ``"none"``.
        over: what the methods were compared over.
    """
    if not len(found.x):
        words = f"The two have no {over} in common, so that nothing can be said without going beyond what was measured."
        return Verdict(metric, found.one, found.other, "–", "–", True, words, APART)
    where = span(float(found.x[0]), float(found.x[-1]))
    cost = _cost(found.costs)
    if not np.isfinite(found.low).all():
        words = f"No intervals from {found.prompts} prompts: {_seen(found)}."
        return Verdict(metric, found.one, found.other, where, cost, found.equal_cost, words, NONE)
    decided = [stretch for stretch in found.stretches if stretch.sign]
    if not decided:
        words = f"No difference beyond the intervals: {_seen(found)}."
        return Verdict(metric, found.one, found.other, where, cost, found.equal_cost, words, NONE)
    parts = [_said(stretch, found, better, over) for stretch in decided]
    whole = len(found.stretches) == 1
    words = f"{'; '.join(parts)}." + ("" if whole else " Elsewhere no difference beyond the intervals.")
    signs = {stretch.sign for stretch in decided}
    kind = BOTH if len(signs) > 1 else _kind(signs.pop(), better)
    return Verdict(metric, found.one, found.other, where, cost, found.equal_cost, words, kind)


def _kind(sign: int, better: str) -> str:
    """Who dominates; where neither direction is better, who is higher."""
    return OTHER if (sign > 0) == (better == "down") else ONE


def _said(stretch: Stretch, found: Comparison, better: str, over: str) -> str:
    if better == "none":
        who, other = (found.one, found.other) if stretch.sign > 0 else (found.other, found.one)
        verb = "higher"
    else:
        who, other = (found.one, found.other) if _kind(stretch.sign, better) == ONE else (found.other, found.one)
        verb = "better"
    sizes = sorted((abs(stretch.least), abs(stretch.most)))
    at = "at" if number(stretch.low) == number(stretch.high) else "from"
    return f"{who} is {verb} than {other} {at} {over} {span(stretch.low, stretch.high)}, by {span(*sizes)}"


def _seen(found: Comparison) -> str:
    low, high = float(found.difference.min()), float(found.difference.max())
    return f"{found.one} minus {found.other} is {span(low, high)}"


def _cost(costs: Floats) -> str:
    one, other = (span(float(row.min()), float(row.max())) for row in costs)
    if (np.abs(costs[0] - costs[1]) <= EQUAL * costs.max(0)).all():
        return one
    return f"{one} against {other}"
