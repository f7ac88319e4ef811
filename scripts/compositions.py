"""The tables of docs/compositions.md: which rules go with which."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..guidance.testing.checks import LEVELS
from ..guidance.testing.composition import STACKS, Outcome, around, attempt, nested, pair, standing, wrappers
from ..guidance.words import lettered

HEAD = f"""# Which rules go with which

Made by `make tables`; a test holds it to what the code does. Every combination was run over
{len(LEVELS)} levels on a batch of three samples with 2, 1 and 2 negatives and 0, 1 and 1 further positives. A cell has
the evaluations of each sample (one number where all have the same), or the letter of the reason for which the stack is
refused when it is made. Unguided, a sample costs {len(LEVELS)}.

Rules apply from left to right: each improves what those before it made. What two rules both ask for is evaluated once.
"""


ROW, COLUMN = "*the row's rule*", "*the column's rule*"
"""What stands for the two in a reason, so that one letter serves all pairs that are refused alike."""


class Reasons:
    """Letters for the reasons of refusals, in the order in which they come."""

    def __init__(self) -> None:
        self.letters: dict[str, str] = {}

    def cell(self, outcome: Outcome, row: str, column: str) -> str:
        """Return the table's entry for an outcome: the evaluations, or the letter of the reason."""
        if outcome.works:
            counts = dict.fromkeys(outcome.evaluations)
            return ", ".join(map(str, outcome.evaluations if len(counts) > 1 else counts))
        reason = outcome.reason.replace(row, ROW, 1 if row == column else -1).replace(column, COLUMN)
        letter = self.letters.setdefault(reason, lettered(len(self.letters)))
        return f"*{letter}*"

    def lines(self) -> list[str]:
        """The list below the table."""
        return [f"* *{letter}*: {reason}" for reason, letter in self.letters.items()]


def table(rows: Sequence[str], columns: Sequence[str], text: Callable[[str, str], str], reasons: Reasons) -> list[str]:
    """A table of combinations."""

    def name(example: str) -> str:
        return f"`{example.format('…')}`"

    lines = [f"| | {' | '.join(map(name, columns))} |", "|---" * (len(columns) + 1) + "|"]
    for row in rows:
        cells = [reasons.cell(attempt(text(row, column)), row, column) for column in columns]
        lines.append(f"| {name(row)} | {' | '.join(cells)} |")
    return lines


def markdown() -> str:
    """The text of docs/compositions.md."""
    parts = [HEAD]
    for title, rows, columns, text in (
        ("One rule behind another: the row's, then the column's", standing(), standing(), pair),
        ("A wrapper around a rule", wrappers(), standing(), around),
        ("A wrapper around a wrapper, around `cfg(3)`", wrappers(), wrappers(), nested),
    ):
        reasons = Reasons()
        parts += [f"## {title}\n", *table(rows, columns, text, reasons), "", *reasons.lines(), ""]
    reasons = Reasons()
    parts += ["## Three and more\n", "| stack | evaluations |", "|---|---|"]
    # A bar would end the cell, in code too.
    cells = ((text, reasons.cell(attempt(text), text, text)) for text in STACKS)
    parts += [f"| `{text}` | {cell} |".replace(" | ", " \\| ", text.count(" | ")) for text, cell in cells]
    return "\n".join([*parts, *reasons.lines()]) + "\n"
