"""The metrics of a run for the terminal: a line a cell, a column a metric."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pyarrow as pa


def summary(metrics: pa.Table, told: Mapping[str, Any]) -> str:
    """Values with their intervals, the metrics' full names, and what is to be said of them.

    Args:
        metrics: as `measure` returns them.
        told: as `RunFolder.cells` returns it.
    """
    rows = metrics.to_pylist()
    names = list(dict.fromkeys(row["metric"] for row in rows))
    by = {(row["cell"], row["metric"]): row for row in rows}
    numbered = {name: f"{_word(name)} ({number})" for number, name in enumerate(names, 1)}
    grid = [["cell", *numbered.values()]]
    for cell in told["cells"]:
        if any((cell["cell"], name) in by for name in names):
            grid.append([_called(cell), *(_shown(by.get((cell["cell"], name))) for name in names)])
    widths = [max(map(len, column)) for column in zip(*grid, strict=True)]
    lines = ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in grid]
    lines += [f"({number}) {name}" for number, name in enumerate(names, 1)]
    notes = dict.fromkeys(f"note: {row['metric']}: {row['note']}" for row in rows if row["note"])
    return "\n".join([*lines, *notes])


def _word(name: str) -> str:
    return name.partition("[")[0].partition("(")[0]


def _called(cell: Mapping[str, Any]) -> str:
    axes = ", ".join(f"{name}={value}" for name, value in cell["axes"].items() if value is not None)
    return f"{cell['stack']} ({axes})" if axes else str(cell["stack"])


def _shown(row: Mapping[str, Any] | None) -> str:
    if row is None or row["value"] is None:
        return "-"
    interval = [row["low"], row["high"]]
    if any(end is None or math.isnan(end) for end in interval):
        return f"{row['value']:.4g}"
    return f"{row['value']:.4g} [{interval[0]:.4g}, {interval[1]:.4g}]"
