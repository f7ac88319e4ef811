"""What a run says of a paper's claim.

An expectation compares a metric in two cells over the samples of the same prompts and seeds. The interval of the
difference, at 95%, is that of `statistics.jackknife`: both cells lose the same prompts; of shares that of
`statistics.paired_share`. `verdicts` has what the interval says of the expectation and of the claim. Intervals are of
each expectation by itself, not of all of them together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...guidance.errors import InputError
from ...guidance.words import counted
from .. import statistics as intervals
from ..metrics import SampleMetric, SetMetric, parse_metric
from ..spec.claim import Claim, Expectation, named
from ..store.folder import RunFolder
from ..verdicts import Finding, overall
from .measure import Cells, singly


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
    deviation = math.nan
    if isinstance(metric, SampleMetric | SetMetric) and metric.share:
        values = singly(of, everything), singly(than, everything)
        known = ~np.isnan(values[0]) & ~np.isnan(values[1])
        low, high = intervals.paired_share(values[0][known], values[1][known], prompts[known])
        deviation = intervals.spread_of_shares(values[0][known] - values[1][known], prompts[known])
    else:
        low, high = intervals.jackknife(difference, prompts, difference(everything))
    return Finding(
        str(expectation),
        expectation.be,
        expectation.matters,
        of(everything),
        than(everything),
        low,
        high,
        len(np.unique(prompts)),
        len(prompts),
        metric.note(len(prompts)),
        deviation=deviation,
    )


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
        note = f" ({one.note})" * bool(one.note)
        lines.append(f"  {one.told}, {counted(one.samples, 'pair')} of {counted(one.prompts, 'prompt')}{note}")
    return "\n".join([*lines, f"on this model it {overall(found)}"])
