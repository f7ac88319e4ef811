"""What a run says of a paper's claim.

An expectation compares a metric in two cells over the samples of the same prompts and seeds. The interval of the
difference, at 95%, is that of `statistics.jackknife`: both cells lose the same prompts; of shares that of
`statistics.paired_share`. A margin ``m`` is in the metric's unit:

=============  =================================  ==================================
``be``         holds if the interval lies         contrary if it lies
=============  =================================  ==================================
`lower`        below -m                           above -m
`higher`       above m                            below m
`not lower`    above -m                           below -m
`not higher`   below m                            above m
`same`         within (-m, m)                     outside of (-m, m)
=============  =================================  ==================================

and is undecided otherwise. A claim holds if all its expectations do, does not hold if one is contrary, and is undecided
else. Intervals are of each expectation by itself, not of all of them together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...guidance.errors import InputError
from ...guidance.words import counted
from .. import statistics as intervals
from ..metrics import SampleMetric, SetMetric, parse_metric
from ..spec.claim import Claim, Expectation, named
from ..store.folder import RunFolder
from .measure import Cells, singly

HOLDS, CONTRARY, UNDECIDED = "holds", "does not hold", "undecided"


@dataclass(frozen=True)
class Finding:
    """A metric in the two cells that an expectation compares, with the interval of the difference.

    Args:
        expectation: that.
        of: the metric in its one cell.
        than: in the other.
        low, high: interval of the difference ``of - than`` at 95%.
        prompts: that both cells have.
        samples: pairs of samples.
        note: what is to be said of so few.
    """

    expectation: Expectation
    of: float
    than: float
    low: float
    high: float
    prompts: int
    samples: int
    note: str = ""

    @property
    def told(self) -> str:
        """Both values and their difference with its interval, as text."""
        return (
            f"{self.of:.4g} and {self.than:.4g}, difference {self.of - self.than:+.4g} "
            f"[{self.low:+.4g}, {self.high:+.4g}], {counted(self.samples, 'pair')} of "
            f"{counted(self.prompts, 'prompt')}" + (f" ({self.note})" if self.note else "")
        )

    @property
    def verdict(self) -> str:
        """What the interval says of the expectation: `HOLDS`, `CONTRARY` or `UNDECIDED`."""
        return judge(self.low, self.high, self.expectation.be, self.expectation.margin)


def judge(low: float, high: float, be: str, margin: float = 0.0) -> str:
    """What an interval of a difference says of an expectation; see the table above.

    Args:
        low: its lower end.
        high: its upper end.
        be: one of `FORMS`.
        margin: 0 or more.
    """
    if be in ("lower", "not higher"):  # the mirror image
        return judge(-high, -low, {"lower": "higher", "not higher": "not lower"}[be], margin)
    if be == "same":
        inside, outside = -margin < low and high < margin, high <= -margin or low >= margin
    else:
        bound = margin if be == "higher" else -margin
        inside, outside = low > bound, high < bound
    return HOLDS if inside else CONTRARY if outside else UNDECIDED


def overall(findings: Sequence[Finding]) -> str:
    """The verdict on a claim, from those on its expectations."""
    verdicts = {one.verdict for one in findings}
    return CONTRARY if CONTRARY in verdicts else UNDECIDED if UNDECIDED in verdicts else HOLDS


def findings(run: RunFolder, claim: Claim, cells: Cells | None = None) -> list[Finding]:
    """What a run says of each expectation of a claim.

    Args:
        run: the folder.
        claim: of a paper.
        cells: of the run, where they have been read already.

    Raises:
        InputError: a cell has no samples, or a metric needs what is not there.
    """
    cells = cells or Cells(run)
    return [_finding(cells, one) for one in claim.expect]


def _finding(cells: Cells, expectation: Expectation) -> Finding:
    one, other = (cell_meant(cells.told["cells"], which) for which in (expectation.of, expectation.than))
    metric = parse_metric(expectation.metric)
    prompts, of, than = cells.paired(metric, one, other)

    def difference(rows: NDArray[np.int64]) -> float:
        return of(rows) - than(rows)

    everything = np.arange(len(prompts))
    if isinstance(metric, SampleMetric | SetMetric) and metric.share:
        values = singly(of, everything), singly(than, everything)
        known = ~np.isnan(values[0]) & ~np.isnan(values[1])
        low, high = intervals.paired_share(values[0][known], values[1][known], prompts[known])
    else:
        low, high = intervals.jackknife(difference, prompts, difference(everything))
    units, note = len(np.unique(prompts)), metric.note(len(prompts))
    return Finding(expectation, of(everything), than(everything), low, high, units, len(prompts), note)


def cell_meant(cells: Sequence[Mapping[str, Any]], wanted: Mapping[str, str]) -> str:
    """The hash of the one cell with these values of axes.

    Args:
        cells: as `RunFolder.cells` tells them.
        wanted: axes, with ``"stack"`` for the name of the template.

    Raises:
        InputError: no cell has them, or several.
    """
    found = [one["cell"] for one in cells if all(_axes(one).get(name) == value for name, value in wanted.items())]
    if len(found) != 1:
        raise InputError(
            f"the claim compares {named(wanted)}, which means {counted(len(found), 'cell')}; name the values of one"
        )
    return str(found[0])


def _axes(cell: Mapping[str, Any]) -> dict[str, Any]:
    return {**cell["axes"], "stack": cell["template"]}


def table(claim: Claim, found: Sequence[Finding]) -> str:
    """The claim, what was found, and the verdict: for a terminal."""
    lines = [f"claim (arXiv:{claim.paper}): {claim.words}"]
    for one in found:
        lines.append(f"  {one.verdict}: {one.expectation}: {one.told}")
    return "\n".join([*lines, f"on this model: {overall(found)}"])


def markdown(found: Sequence[Finding]) -> str:
    """What was found, as rows of a table: expectation, both values, difference with interval, verdict."""
    lines = ["| expected | here | difference, 95% | |", "|---|---|---|---|"]
    for one in found:
        difference = f"{one.of - one.than:+.4g} [{one.low:+.4g}, {one.high:+.4g}]"
        lines.append(f"| {one.expectation} | {one.of:.4g} and {one.than:.4g} | {difference} | {one.verdict} |")
    return "\n".join(lines)
