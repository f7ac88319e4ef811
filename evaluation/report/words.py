"""Comparisons in words."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ...guidance.words import counted
from ..analysis.matched import EQUAL, Comparison, Floats, Stretch

ROUNDING = 1e-4
APART, FEW, NONE, ONE, OTHER, BOTH = "apart", "few", "none", "one", "other", "both"


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
        kind: `ONE` or `OTHER` if it dominates somewhere, `BOTH` if either does, `NONE` if neither, `FEW` if there are
            too few samples or prompts to tell, `APART` if they were nowhere equally strong.
        plot: the name of the plot of the difference; "" if there is none.
    """

    metric: str
    one: str
    other: str
    where: str
    cost: str
    equal: bool
    words: str
    kind: str
    plot: str = ""


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


def small(value: float) -> float:
    """What a record has of a length that is 0 but for rounding: 0. Its digits are of no use."""
    return 0.0 if abs(value) < ROUNDING else value


def parts(found: Comparison, breaks: Sequence[int] = ()) -> list[Comparison]:
    """A comparison cut where a stretch was left out.

    Args:
        found: the comparison.
        breaks: the places in its x behind such a stretch.
    """
    ends = [0, *breaks, len(found.x)]
    cuts = [slice(start, end) for start, end in itertools.pairwise(ends) if end > start]
    return [
        replace(
            found,
            x=found.x[cut],
            difference=found.difference[cut],
            low=found.low[cut],
            high=found.high[cut],
            costs=found.costs[:, cut],
        )
        for cut in cuts
    ]


def verdict(
    found: Comparison,
    metric: str,
    better: str,
    over: str = "effective scale",
    breaks: Sequence[int] = (),
    few: str = "",
) -> Verdict:
    """What a comparison says.

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
        return Verdict(metric, found.one, found.other, "–", "–", True, words, APART)
    pieces = parts(found, breaks)
    where = " and ".join(span(float(piece.x[0]), float(piece.x[-1])) for piece in pieces)
    told = Verdict(metric, found.one, found.other, where, _cost(found.costs), found.equal_cost, "", NONE)
    if few or not np.isfinite(found.low).all():
        reason = few or f"No intervals from {counted(found.prompts, 'prompt')}"
        band = f", {_band(found.low, found.high)}" * bool(np.isfinite(found.low).all())
        return replace(told, words=f"{reason}: {_seen(found)} as measured{band}.", kind=FEW)
    all_of_it = [(piece, stretch) for piece in pieces for stretch in piece.stretches]
    decided = [(piece, stretch) for piece, stretch in all_of_it if stretch.sign]
    if not decided:
        words = (
            f"No difference found: {_seen(found)} as measured, {_band(found.low, found.high)}, so that greater "
            f"differences are excluded."
        )
        return replace(told, words=words)
    words = "; ".join(_said(stretch, piece, better, over) for piece, stretch in decided) + "."
    rest = [_within(stretch, piece) for piece, stretch in all_of_it if not stretch.sign]
    if rest:
        low, high = (np.concatenate([band[end] for band in rest]) for end in (0, 1))
        words += f" Elsewhere no difference found: {found.one} minus {found.other} has {_band(low, high)}."
    signs = {stretch.sign for _, stretch in decided}
    return replace(told, words=words, kind=BOTH if len(signs) > 1 else _kind(signs.pop(), better))


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
    low, high = _within(stretch, found)
    if stretch.sign < 0:
        low, high = -high, -low
    at = "at" if number(stretch.low) == number(stretch.high) else "from"
    return (
        f"{who} is {verb} than {other} {at} {over} {span(stretch.low, stretch.high)}, by {span(*sizes)} as measured, "
        f"{_band(low, high)}"
    )


def _within(stretch: Stretch, found: Comparison) -> tuple[Floats, Floats]:
    """The ends of the band in a stretch."""
    there = (stretch.low <= found.x) & (found.x <= stretch.high)
    return found.low[there], found.high[there]


def _band(low: Floats, high: Floats) -> str:
    """The least and the greatest that the band holds."""
    return f"95% band {number(float(low.min()))} to {number(float(high.max()))}"


def _seen(found: Comparison) -> str:
    low, high = float(found.difference.min()), float(found.difference.max())
    return f"{found.one} minus {found.other} is {span(low, high)}"


def _cost(costs: Floats) -> str:
    one, other = (span(float(row.min()), float(row.max())) for row in costs)
    if (np.abs(costs[0] - costs[1]) <= EQUAL * costs.max(0)).all():
        return one
    return f"{one} against {other}"
