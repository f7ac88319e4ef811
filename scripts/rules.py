"""``guidestack rules``."""

from __future__ import annotations

import itertools
import re
import textwrap

import click

from ..guidance.notation.presets import load_preset, names, path_of
from ..guidance.notation.registry import Entry
from ..guidance.notation.registry import rules as registered
from .options import rules_option


def paper(entry: Entry) -> str:
    """The arXiv number of a rule's first reference, or ""."""
    found = re.search(r"arXiv:(\d{4}\.\d{4,5})", "".join(entry.references[:1]))
    return found[1] if found else ""


def markdown() -> str:
    """The table of the README."""
    lines = ["| rule | what it does | evaluations a step | paper |", "|---|---|---|---|"]
    for entry in registered():
        signature = entry.signature.replace("|", "\\|")
        link = f"[{number}](https://arxiv.org/abs/{number})" if (number := paper(entry)) else ""
        lines.append(f"| `{signature}` | {entry.summary} | {entry.cost} | {link} |")
    return "\n".join(lines)


def listed() -> str:
    """The presets: name, what its file says first, and the stack."""
    found = []
    for name in names():
        lines = path_of(name).read_text(encoding="utf-8").splitlines()
        said = itertools.takewhile(lambda line: line.startswith("# ") and not line.startswith("#   "), lines)
        about = " ".join(line.removeprefix("# ") for line in said)
        if about.endswith(":"):  # what was measured follows
            about = about.rpartition(". ")[0] + "."
        whole = textwrap.fill(about, 110, initial_indent="    ", subsequent_indent="    ")
        found.append(f"@{name}\n{whole}\n    {load_preset(name)}\n")
    return "".join(found)


@click.command()
@click.option("--markdown", "as_markdown", is_flag=True, help="As the table of the README.")
@click.option("--presets", is_flag=True, help="The presets that come with guidestack: --guidance @NAME.")
@click.option("--compositions", is_flag=True, help="Which rules go with which, as docs/compositions.md.")
@rules_option
def command(as_markdown: bool, presets: bool, compositions: bool) -> None:
    """List the guidance rules: parameters, cost in evaluations a step, paper."""
    if presets:
        click.echo(listed(), nl=False)
        return
    if compositions:
        from .compositions import markdown as tables

        click.echo(tables(), nl=False)
        return
    if as_markdown:
        click.echo(markdown())
        return
    for entry in registered():
        click.echo(f"{entry.signature}\n    {entry.summary}\n    evaluations a step: {entry.cost}")
        if number := paper(entry):
            click.echo(f"    arXiv:{number}")
