"""Tables for notebooks."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

MAX_STEPS = 60  # steps that a table shows of a run


def table(said: str, heads: Sequence[str], rows: Iterable[Sequence[str]], beneath: str = "") -> str:
    """A line and a table beneath it, as HTML for a notebook.

    All text is escaped, and no colours are set: the notebook's own are readable in its light and in its dark theme.

    Args:
        said: the line above.
        heads: of the columns.
        rows: the cells.
        beneath: a line below the table, or "".
    """
    lines = [_row("th", heads), *(_row("td", row) for row in rows)]
    foot = f"<p>{html.escape(beneath)}</p>" if beneath else ""
    return f"<p>{html.escape(said)}</p><table>{''.join(lines)}</table>{foot}"


def _row(kind: str, cells: Sequence[str]) -> str:
    style = ' style="text-align: left"'
    return f"<tr>{''.join(f'<{kind}{style}>{html.escape(cell)}</{kind}>' for cell in cells)}</tr>"
