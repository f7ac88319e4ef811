"""The figure and the tables of docs/tuning.md, from what `guidestack tune` and `guidestack evaluate` measured."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from ....guidance.errors import InputError
from .shared import OneLine, exchanged

GROUPS = (
    ("frontier", ""),
    ("fewer_steps", ", {} steps"),
    ("wanted", ", wanted"),
    ("held_out", ", {} steps, held-out prompts"),
)
"""Groups of a frontier's file, and what is said of their rows."""


def frontier_table(told: Mapping[str, Any]) -> str:
    """Frontier, yardsticks and what was verified, in Markdown."""
    metrics = list(told["names"])
    rows = []
    for group, words in GROUPS:
        for row in told.get(group) or []:
            numbers = [_interval(row[metric], row[f"{metric}_low"], row[f"{metric}_high"]) for metric in metrics]
            rows.append([_code(row["stack"]) + words.format(row["steps"]), f"{row['evaluations']:.4g}", *numbers])
    return _table(["", "evaluations", *metrics], rows)


def sweep_table(cells: Sequence[Mapping[str, Any]], numbers: Sequence[Mapping[str, Any]]) -> str:
    """The metrics of a run's cells, in Markdown.

    Args:
        cells: as `RunFolder.cells` tells of them.
        numbers: rows of its metrics.
    """
    metrics = list(dict.fromkeys(row["text"] for row in numbers))
    by = {(row["cell"], row["text"]): row for row in numbers}
    rows = []
    for cell in cells:
        found = [by[cell["cell"], metric] for metric in metrics]
        rows.append([_code(cell["stack"]), *(_interval(row["value"], row["low"], row["high"]) for row in found)])
    return _table(["", *metrics], rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, ["---"] * len(head), *rows))


def _code(stack: str) -> str:
    return f"`{stack}`".replace("|", "\\|")


def _interval(value: float, low: float, high: float) -> str:
    return f"{value:.4g}" if low == high else f"{value:.4f} [{low:.4f}, {high:.4f}]"


@click.command(
    cls=OneLine,
    help="Draw the figure of docs/tuning.md and fill in its tables, from the folder of a tuning or of a sweep.",
)
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--name", default="tune", show_default=True, help="Of the picture, and of the numbers in the page.")
@click.option("--page", type=click.Path(path_type=Path), default=Path("docs/tuning.md"), show_default=True)
def main(folder: Path, name: str, page: Path) -> None:
    """Write the figure and the tables of docs/tuning.md."""
    click.echo(f"{page.parent}: {', '.join(written(folder, name, page))}")


def written(folder: Path, name: str, page: Path) -> list[str]:
    """Put the numbers of a folder into the page, and the picture of a tuning beside it; returns the files' names.

    Raises:
        InputError: the folder holds neither, or the page has no place for it.
    """
    from ....evaluation.store.location import Location
    from ....evaluation.tune.frontier import figure

    try:
        text, files = page.read_text(encoding="utf-8"), Location(page.parent)
        if (folder / "frontier.json").exists():
            told = json.loads((folder / "frontier.json").read_bytes())
            files.write(page.name, exchanged(text, name, frontier_table(told)).encode())
            files.write(f"{name}.png", figure(told, "png"))
            return [page.name, f"{name}.png"]
        files.write(page.name, exchanged(text, name, _of_run(folder)).encode())
        return [page.name]
    except (OSError, ValueError) as error:
        raise InputError(f"no tuning and no sweep in {folder}, or no page {page}: {error}") from error


def _of_run(folder: Path) -> str:
    from ....evaluation import RunFolder

    run = RunFolder(folder)
    return sweep_table(run.cells()["cells"], run.metrics().to_pylist())
