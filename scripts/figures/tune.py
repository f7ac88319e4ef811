"""The figure and the table of docs/tuning.md, from what `guidestack tune` measured."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from ...evaluation.location import Location
from ...guidance.errors import InputError
from .methods import exchanged


def table(told: Mapping[str, Any]) -> str:
    """Frontier, yardsticks and what was verified, in Markdown."""
    metrics = list(told["names"])
    lines = [f"| | evaluations | {' | '.join(metrics)} |", "|---" * (2 + len(metrics)) + "|"]
    for group, words in (
        ("frontier", ""),
        ("fewer_steps", ", {} steps"),
        ("wanted", " (wanted)"),
        ("held_out", ", {} steps, held-out prompts"),
    ):
        for row in told.get(group) or []:
            numbers = " | ".join(_shown(row, metric) for metric in metrics)
            named = f"`{row['stack']}`".replace("|", "\\|") + words.format(row["steps"])
            lines.append(f"| {named} | {row['evaluations']:.4g} | {numbers} |")
    return "\n".join(lines) + "\n"


def _shown(row: Mapping[str, Any], metric: str) -> str:
    return f"{row[metric]:.4f} [{row[f'{metric}_low']:.4f}, {row[f'{metric}_high']:.4f}]"


@click.command(help="Draw the figure of docs/tuning.md and fill in its table, from the folder of a tuning.")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--name", default="tune", show_default=True, help="Of the picture, and of the numbers in the page.")
@click.option("--page", type=click.Path(path_type=Path), default=Path("docs/tuning.md"), show_default=True)
def main(folder: Path, name: str, page: Path) -> None:
    """Write both."""
    from ...evaluation.tune.plot import figure

    try:
        try:
            told = json.loads((folder / "frontier.json").read_bytes())
            text = page.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise InputError(f"no tuning in {folder}, or no page {page}: {error}") from None
        files = Location(page.parent)
        files.write(page.name, exchanged(text, name, table(told)).encode())
        files.write(f"{name}.png", figure(told, "png"))
    except InputError as error:
        raise click.ClickException(str(error)) from None
    click.echo(f"{page.parent / name}.png, {page}")
