"""``guidestack rules``."""

from __future__ import annotations

import re

import click

from ..guidance.registry import Entry
from ..guidance.registry import rules as registered


def paper(entry: Entry) -> str:
    """The arXiv number of a rule's first reference, or ""."""
    found = re.search(r"arXiv:(\d{4}\.\d{4,5})", "".join(entry.references[:1]))
    return f"arXiv:{found[1]}" if found else ""


@click.command()
@click.option("--markdown", is_flag=True, help="As the table of the README.")
def command(markdown: bool) -> None:
    """List the guidance rules: parameters, cost in evaluations a step, paper."""
    if markdown:
        click.echo("| rule | what it does | evaluations a step | paper |\n|---|---|---|---|")
        for entry in registered():
            number = paper(entry).removeprefix("arXiv:")
            signature = entry.signature.replace("|", "\\|")
            link = f"[{number}](https://arxiv.org/abs/{number})"
            click.echo(f"| `{signature}` | {entry.summary} | {entry.cost} | {link} |")
        return
    for entry in registered():
        click.echo(entry.signature)
        click.echo(f"    {entry.summary}\n    evaluations a step: {entry.cost}\n    {paper(entry)}")
