"""Comparisons in words."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np

from ...guidance.words import counted
from ..analysis.matched import Comparison, Floats
from ..statistics import EQUAL

ROUNDING = 1e-4


class Kind(StrEnum):
    """What a comparison of two methods shows."""

    APART = "apart"
    """The two methods have no effective scale in common."""
    FEW = "few"
    """There are too few samples or prompts to tell."""
    NONE = "none"
    """Neither dominates anywhere."""
    ONE = "one"
    """The first dominates somewhere, and the other nowhere."""
    OTHER = "other"
    """The other dominates somewhere, and the first nowhere."""
    BOTH = "both"
    """Either dominates somewhere."""


@dataclass(frozen=True)
class ComparisonRow:
    """A comparison as the table has it.

    Args:
        metric: its text.
        one, other: the methods.
        where: over which effective scales.
        cost: at which evaluations.
        equal: whether these are equal.
        words: what holds there.
        kind: which of the methods dominates, or why that is not known.
        plot: the name of the plot of the difference; "" if there is none.
    """

    metric: str
    one: str
    other: str
    where: str
    cost: str
    equal: bool
    words: str
    kind: Kind
    plot: str = ""


def number(value: float) -> str:
    """A number with three significant digits; a dash where it is not finite."""
    if not math.isfinite(value):
        return "–"
    text = f"{value:.3g}" if 1e-3 <= abs(value) < 1e4 or not value else f"{value:.2e}"
    return text.replace("-", "−", 1) if value < 0 else text


def span(low: float, high: float) -> str:
    """A range as text; one number where its ends are the same to three digits."""
    ends = (number(low), number(high))
    return ends[0] if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}"


def small(value: float) -> float:
    """The number, or 0 where it is as small as rounding makes what is 0."""
    return 0.0 if abs(value) < ROUNDING else value


def parts(found: Comparison, breaks: Sequence[int] = ()) -> list[Comparison]:
    """A comparison cut where a stretch was left out.

    Args:
        found: the comparison.
        breaks: the places in its x behind such a stretch.
    """
    ends = [0, *breaks, len(found.x)]
    return [found.cut(slice(start, end)) for start, end in itertools.pairwise(ends) if end > start]


def verdict(
    found: Comparison,
    metric: str,
    better: str,
    over: str = "effective scale",
    breaks: Sequence[int] = (),
    few: str = "",
) -> ComparisonRow:
    """What a comparison of two methods says, in words.

    Args:
        found: the comparison.
        metric: its text.
        better: ``"up"``, ``"down"`` or ``"none"``.
        over: what the methods were compared over.
        breaks: places in ``found.x`` behind a stretch that was left out.
        few: why there are too few samples to tell; "" if there are enough.
    """
    if not len(found.x):
        words = f"The two have no {over} in common, so that nothing can be said without going beyond what was measured."
        return ComparisonRow(metric, found.one, found.other, "–", "–", True, words, Kind.APART)
    pieces = parts(found, breaks)
    where = " and ".join(span(float(piece.x[0]), float(piece.x[-1])) for piece in pieces)
    told = ComparisonRow(metric, found.one, found.other, where, _cost(found.costs), found.equal_cost, "", Kind.NONE)
    if few or not np.isfinite(found.low).all():
        reason = few or f"No intervals from {counted(found.prompts, 'prompt')}"
        band = f", {_band(found.low, found.high)}" if np.isfinite(found.low).all() else ""
        return replace(told, words=f"{reason}: {_seen(found)} as measured{band}.", kind=Kind.FEW)
    stretches = [stretch for piece in pieces for stretch in piece.stretches]
    decided = [(sign, part) for sign, part in stretches if sign]
    if not decided:
        words = (
            f"No difference found: {_seen(found)} as measured, {_band(found.low, found.high)}, so that greater "
            f"differences are excluded."
        )
        return replace(told, words=words)
    words = "; ".join(_sentence(sign, part, better, over) for sign, part in decided) + "."
    rest = [part for sign, part in stretches if not sign]
    if rest:
        band = _band(np.concatenate([part.low for part in rest]), np.concatenate([part.high for part in rest]))
        words += f" Elsewhere no difference found: {found.one} minus {found.other} has {band}."
    signs = {sign for sign, _ in decided}
    return replace(told, words=words, kind=Kind.BOTH if len(signs) > 1 else _kind(signs.pop(), better))


def _kind(sign: int, better: str) -> Kind:
    """Who dominates; where neither direction is better, who is higher."""
    return Kind.OTHER if (sign > 0) == (better == "down") else Kind.ONE


def _sentence(sign: int, part: Comparison, better: str, over: str) -> str:
    """What is said of a stretch in which one of the methods dominates."""
    who, other = (part.one, part.other) if _kind(sign, better) == Kind.ONE else (part.other, part.one)
    sizes = sorted((abs(float(part.difference.min())), abs(float(part.difference.max()))))
    low, high = (part.low, part.high) if sign > 0 else (-part.high, -part.low)
    first, last = float(part.x[0]), float(part.x[-1])
    return (
        f"{who} is {'higher' if better == 'none' else 'better'} than {other} "
        f"{'at' if number(first) == number(last) else 'from'} {over} {span(first, last)}, by {span(*sizes)} as "
        f"measured, {_band(low, high)}"
    )


def _band(low: Floats, high: Floats) -> str:
    """The least and the greatest value in a band, as text."""
    return f"95% band {number(float(low.min()))} to {number(float(high.max()))}"


def _seen(found: Comparison) -> str:
    low, high = float(found.difference.min()), float(found.difference.max())
    return f"{found.one} minus {found.other} is {span(low, high)}"


def _cost(costs: Floats) -> str:
    one, other = (span(float(row.min()), float(row.max())) for row in costs)
    if (np.abs(costs[0] - costs[1]) <= EQUAL * costs.max(0)).all():
        return one
    return f"{one} against {other}"
