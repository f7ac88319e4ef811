"""The pages and tables of docs/ that are made from the code. ``python -m guidestack.scripts.dev.tables``.

Tests hold the pages to the code. Pages with pictures have targets of their own, ``make figures`` and ``make world``.
"""

from __future__ import annotations

from pathlib import Path

from ..compositions import markdown as compositions
from ..metrics import markdown as metrics
from ..rules import markdown as rules
from .families import markdown as families
from .families import pipelines

DOCS = Path(__file__).parents[2] / "docs"


def with_table(page: str, table: str) -> str:
    """The text of a page with `table` in the place of its table of the same head.

    >>> print(with_table("# All\\n\\n| a |\\n|---|\\n| 1 |\\n\\nend", "| a |\\n|---|\\n| 2 |\\n| 3 |"), end="")
    # All
    <BLANKLINE>
    | a |
    |---|
    | 2 |
    | 3 |
    <BLANKLINE>
    end
    """
    before, head, rest = page.partition(table.partition("\n")[0] + "\n")
    lines = rest.splitlines(keepends=True)
    length = next((index for index, line in enumerate(lines) if not line.startswith("|")), len(lines))
    if not head:
        raise ValueError(f"the page has no table with the head {table.partition(chr(10))[0]}")
    return before + table + "\n" + "".join(lines[length:])


def main() -> None:
    """Write the tables and pages of docs/ that are made from the code."""
    for name, table in (("rules.md", rules()), ("metrics.md", metrics())):
        page = DOCS / name
        page.write_text(with_table(page.read_text(), table))
    (DOCS / "compositions.md").write_text(compositions())
    (DOCS / "family-rules.md").write_text(families(pipelines()))


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    main()
