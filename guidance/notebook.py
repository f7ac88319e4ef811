"""Tables for notebooks."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

MAX_STEPS = 60  # steps that a table shows of a run


def table(said: str, heads: Sequence[str], rows: Iterable[Sequence[str]], beneath: str = "") -> str:
    """A line and a table beneath it, as HTML for a notebook.

    All of it is text, whatever it holds, and it has no colours of its own: a notebook's are readable in light and in
    dark.

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
