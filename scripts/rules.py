"""``guidestack rules``."""

from __future__ import annotations

import itertools
import re
import textwrap
from collections import Counter

import click

from ..guidance.errors import InputError
from ..guidance.notation.presets import load_preset, names, path_of
from ..guidance.notation.registry import Entry
from ..guidance.notation.registry import rules as registered
from ..guidance.notation.text import parse
from ..guidance.plan import When, plan
from ..guidance.prediction import Level
from ..guidance.rule import Stack
from .as_json import echo_json, json_option
from .options import rules_option

SCHEDULE = [When(index, 0, Level.flow(1 - index / 20), 1 - index / 20) for index in range(20)]
"""On which the examples of rules are counted."""


def paper(entry: Entry) -> str:
    """The arXiv number of a rule's first reference, or ""."""
    found = re.search(r"arXiv:(\d{4}\.\d{4,5})", "".join(entry.references[:1]))
    return found[1] if found else ""


def cost(entry: Entry) -> str:
    """The network evaluations that a rule costs in a step of its examples, or what the rule says of that.

    A rule that stands behind others counts by itself: what it costs more than they do.
    """
    found, more, at_most = set(), False, False
    for stack in () if entry.cost else map(parse, entry.examples):
        others = Stack(*(rule for rule in stack.rules if type(rule) is not entry.rule))
        more, at_most = bool(others.rules), any(rule.data_dependent for rule in stack.parts())
        whole, rest = _by_step(stack), _by_step(others)
        found |= {whole[step] - more * rest[step] for step in whole}
    if not found:
        return entry.cost or "not known without an example"
    low, high = min(found), max(found)
    number = f"{low} to {high}" if low < high else f"{high}"
    return f"{'at most ' if at_most else ''}{number}{' more' if more else ''}"


def _by_step(stack: Stack) -> Counter[int]:
    """The evaluations of each step of the schedule, those of turns included."""
    counts: Counter[int] = Counter()
    for one in plan(stack, SCHEDULE):
        counts[one.when.step] += len(one.queries)
    return counts


def markdown() -> str:
    """The table of docs/rules.md."""
    lines = ["| rule | what it does | evaluations a step | paper |", "|---|---|---|---|"]
    for entry in registered():
        signature = entry.signature.replace("|", "\\|")
        link = f"[{number}](https://arxiv.org/abs/{number})" if (number := paper(entry)) else ""
        lines.append(f"| `{signature}` | {entry.summary} | {cost(entry)} | {link} |")
    return "\n".join(lines)


def presets_as_json() -> list[dict[str, str]]:
    """The presets: name, what its file says first, and the stack."""
    found = []
    for name in names():
        lines = path_of(name).read_text(encoding="utf-8").splitlines()
        said = itertools.takewhile(lambda line: line.startswith("# ") and not line.startswith("#   "), lines)
        about = " ".join(line.removeprefix("# ") for line in said)
        if about.endswith(":"):  # what was measured follows
            about = about.rpartition(". ")[0] + "."
        found.append({"name": name, "about": about, "stack": str(load_preset(name))})
    return found


def listing() -> str:
    """The presets as text."""
    found = []
    for one in presets_as_json():
        about = textwrap.fill(one["about"], 110, initial_indent="    ", subsequent_indent="    ")
        found.append(f"@{one['name']}\n{about}\n    {one['stack']}\n")
    return "".join(found)


def rules_as_json() -> list[dict[str, str]]:
    """The rules: what the command prints of each."""
    return [
        {
            "name": entry.name,
            "signature": entry.signature,
            "summary": entry.summary,
            "evaluations": cost(entry),
            "arxiv": paper(entry),
        }
        for entry in registered()
    ]


@click.command()
@click.option("--markdown", "as_markdown", is_flag=True, help="Print the table of docs/rules.md.")
@click.option("--presets", is_flag=True, help="List the presets that come with guidestack, for --guidance @NAME.")
@click.option("--compositions", is_flag=True, help="Print docs/compositions.md: which rules go together.")
@rules_option
@json_option
def command(as_markdown: bool, presets: bool, compositions: bool, as_json: bool) -> None:
    """List the guidance rules: parameters, evaluations a step of an example, paper."""
    if as_json:
        if as_markdown or compositions:
            raise InputError("--json is for the list of rules and for --presets; drop --markdown and --compositions")
        echo_json({"presets": presets_as_json()} if presets else {"rules": rules_as_json()})
        return
    if presets:
        click.echo(listing(), nl=False)
        return
    if compositions:
        from .compositions import markdown as tables

        click.echo(tables(), nl=False)
        return
    if as_markdown:
        click.echo(markdown())
        return
    for entry in registered():
        click.echo(f"{entry.signature}\n    {entry.summary}\n    evaluations a step: {cost(entry)}")
        if entry.source:
            click.echo(f"    of the file {entry.source.name}")
        if number := paper(entry):
            click.echo(f"    arXiv:{number}")
