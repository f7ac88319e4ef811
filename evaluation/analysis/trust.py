"""What keeps a table of metrics from being believed, in a line each: rules that the field has learnt the hard way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...guidance.words import counted
from ..metrics import Metric
from ..statistics import EQUAL
from .measure import Cells

BESIDE = ("saturation", "contrast", "effective_scale")
MANY = 20


def cautions(cells: Cells, metrics: Sequence[Metric]) -> list[str]:
    """What to say below the metrics of a run, a line each; none where nothing is amiss.

    Args:
        cells: of the run.
        metrics: in its table.
    """
    names = {one.name for one in metrics}
    said = []
    for one in metrics:
        if one.preference and (missing := [name for name in BESIDE if name not in names]):
            said.append(
                f"{one}: more colour and stronger guidance raise a preference score by themselves; put "
                f"{', '.join(missing)} into metrics to see whether they did"
            )
    fewest = min((len(cell) for cell in cells.by_name.values()), default=0)
    for one in metrics:
        if one.name.startswith(("frechet", "fd_")) and fewest < one.fewest and "kid" not in names:
            said.append(f"{one} of {counted(fewest, 'image')} is biased upwards; put kid into metrics, which is not")
    costs = [float(cell.numbers("evaluations").mean()) for cell in cells.by_name.values()]
    if costs and any(one.better != "none" and one.name not in ("evaluations", "seconds") for one in metrics):
        low, high = min(costs), max(costs)
        if high - low > EQUAL * high:
            said.append(
                f"cells cost {low:.3g} to {high:.3g} evaluations an image: what costs more may be better for it alone; "
                "an axis of steps compares at equal cost, guidestack report at equal strength"
            )
    rows = sum(one.better != "none" for one in metrics) * _pairs(list(cells.by_name))
    if rows >= MANY:
        said.append(f"{rows} pairs of cells and metrics can be compared: of so many, one in twenty differs by chance")
    return said


def _pairs(cells: Sequence[Any]) -> int:
    return len(cells) * (len(cells) - 1) // 2
