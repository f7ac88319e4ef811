"""CSV files that a spreadsheet may open."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from typing import Any


def no_formula(value: Any) -> Any:
    """A value for a CSV file, with an apostrophe before a text that a spreadsheet would compute."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def written_csv(rows: Sequence[Sequence[Any]]) -> bytes:
    """Rows as the contents of a CSV file; NaN is empty."""
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    for row in rows:
        writer.writerow(["" if isinstance(one, float) and math.isnan(one) else no_formula(one) for one in row])
    return sink.getvalue().encode()
