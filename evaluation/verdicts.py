"""What an interval of a difference says of a row of a claim, with the smallest difference that matters known before.

A row says how a number ``of`` is to stand to a number ``than``. With the interval of ``of - than`` at 95% and X, the
smallest difference that matters, in the number's unit:

=============  ==================================  ==================================  ================================
``be``         holds if the interval lies          does not hold if it lies            no difference larger than X
=============  ==================================  ==================================  ================================
`lower`        below 0                             above 0                             if it lies within (-X, X)
`higher`       above 0                             below 0                             if it lies within (-X, X)
`not lower`    above -X                            below -X
`not higher`   below X                             above X
`same`         within (-X, X)                      outside of (-X, X)
=============  ==================================  ==================================  ================================

The last column goes first: a difference that is certain, and too small to matter, decides nothing. What is left is
undecided, and needs more samples. Intervals are of each row by itself, not of all rows together: of `lower` and
`higher`, where there is no difference, 5% of the rows at most say that there is one.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from scipy.special import ndtri

from ..guidance.words import counted
from .statistics import GROUPS, student

Be = Literal["lower", "higher", "not lower", "not higher", "same"]
HOLDS, CONTRARY, NOTHING, UNDECIDED = "holds", "does not hold", "no difference", "undecided"
POWER = 0.8


def verdict(low: float, high: float, be: str, matters: float) -> str:
    """What an interval of a difference says; see the module's table.

    Args:
        low: its lower end; NaN, as where there is no interval, decides nothing.
        high: its upper end.
        be: one of the words of the table.
        matters: X, above 0.

    >>> [verdict(*ends, "lower", 0.1) for ends in [(-0.3, -0.05), (-0.09, -0.01), (-0.3, 0.2), (0.01, 0.2)]]
    ['holds', 'no difference', 'undecided', 'does not hold']
    """
    within = -matters < low and high < matters
    if be == "same":
        return HOLDS if within else CONTRARY if high <= -matters or low >= matters else UNDECIDED
    if be in ("lower", "higher") and within:
        return NOTHING
    if be in ("lower", "not higher"):  # the mirror image
        low, high = -high, -low
    bound = 0.0 if be in ("lower", "higher") else -matters
    return HOLDS if low > bound else CONTRARY if high < bound else UNDECIDED


def said(found: str, matters: float) -> str:
    """A verdict in words: ``no difference larger than 0.05``, and the others as they are."""
    return f"{NOTHING} larger than {matters:g}" if found == NOTHING else found


def expected(number: str, of: str, be: str, than: str) -> str:
    """What a row expects, in words: ``saturation of apg is lower than that of cfg``."""
    return f"{number} of {of} is {be} {'as' if be == 'same' else 'than'} that of {than}"


@dataclass(frozen=True)
class Finding:
    """A row of a claim with what was found.

    Args:
        expected: in words.
        be, matters: as of `verdict`.
        of, than: the number in the two cells.
        low, high: interval of the difference ``of - than`` at 95%.
        prompts: how many were compared.
        samples: pairs of samples.
        note: what is to be said of so few.
        where: it was found, where there are several places; else "".
        deviation: about that of the difference of one prompt, where the interval does not tell it; NaN where it does.
    """

    expected: str
    be: str
    matters: float
    of: float
    than: float
    low: float
    high: float
    prompts: int = 0
    samples: int = 0
    note: str = ""
    where: str = ""
    deviation: float = math.nan

    @property
    def verdict(self) -> str:
        """`HOLDS`, `CONTRARY`, `NOTHING` or `UNDECIDED`."""
        return verdict(self.low, self.high, self.be, self.matters)

    @property
    def said(self) -> str:
        """The verdict in words, as the function `said` has it."""
        return said(self.verdict, self.matters)

    @property
    def difference(self) -> str:
        """The difference with its interval, as text."""
        return f"{self.of - self.than:+.4g} [{self.low:+.4g}, {self.high:+.4g}]"

    @property
    def told(self) -> str:
        """The verdict, what was expected, and both numbers and their difference, as text."""
        numbers = f"{self.of:.4g} and {self.than:.4g}, difference {self.difference}"
        return ": ".join(filter(None, [self.said, self.where, self.expected, numbers]))

    @property
    def spread(self) -> float:
        """About the deviation of the difference of one prompt: what `wanted` counts prompts by."""
        if not math.isnan(self.deviation):
            return self.deviation
        return (self.high - self.low) / 2 / student(min(self.prompts, GROUPS) - 1) * math.sqrt(self.prompts)

    def wanted(self, power: float = POWER) -> int:
        """How many prompts the row needs, as the function `wanted` counts them; 0 where so few cannot say."""
        return wanted(self.spread, self.be, self.matters, power) if math.isfinite(self.spread) else 0

    def plain(self) -> dict[str, Any]:
        """What was found, for JSON."""
        return {name: value for name, value in asdict(self).items() if name not in ("where", "deviation")}


def overall(found: Sequence[Finding]) -> str:
    """The verdict on a claim, by its rows: ``holds in 4 of 5 rows; row 5: no difference larger than 0.05``."""
    counts = Counter(one.verdict for one in found)
    rows = counted(len(found), "row")
    if counts[HOLDS] == len(found):
        return f"{HOLDS} in all {rows}" if len(found) > 1 else f"{HOLDS} in its {rows}"
    if counts[HOLDS] == len(found) - 1:
        place, other = next((place, one) for place, one in enumerate(found, 1) if one.verdict != HOLDS)
        others = [f"row {place}: {other.said}"]
    else:
        others = [f"{word} in {counts[word]}" for word in (CONTRARY, NOTHING, UNDECIDED) if counts[word]]
    return "; ".join([f"{HOLDS} in {counts[HOLDS]} of {rows}", *others])


def wanted(spread: float, be: str, matters: float, power: float = POWER) -> int:
    """How many independent units a row needs.

    With so many, a true difference of X is found (`lower`, `higher`), or that there is none is shown (the others), with
    probability `power`, where the interval is the normal one at 95%:

    .. math:: n = \\left((z_{0.975} + z_p)\\,\\frac{s}{X}\\right)^2

    with s the deviation of one unit's difference and p the power; of `same`, which can fail on two sides,
    p = (1 + power)/2.

    Args:
        spread: s, in the number's unit.
        be: one of the words of the module's table.
        matters: X, above 0.
        power: in (0, 1).

    >>> wanted(1.0, "lower", 0.5), wanted(1.0, "same", 0.5)
    (32, 43)
    """
    reach = float(ndtri(0.975) + ndtri((1 + power) / 2 if be == "same" else power))
    return max(1, math.ceil((reach * spread / matters) ** 2))
