"""``guidestack rules``."""

from __future__ import annotations

import inspect
import itertools
import re
import textwrap
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import click

from ..guidance.errors import InputError, nearest, shown
from ..guidance.notation.presets import load_preset, names, path_of
from ..guidance.notation.registry import Entry
from ..guidance.notation.registry import rules as registered
from ..guidance.notation.text import parse
from ..guidance.plan import SchedulePoint, plan
from ..guidance.prediction import Level
from ..guidance.rule import Stack
from .as_json import echo_json, json_option
from .options import rules_option
from .plain import plain

PICTURED = ("cat face, noto style, blue background", "rocket, flat style, black background")
"""Prompts of the picture of a rule."""
SAMPLER, STEPS = "dpm++2m", 15
PICTURE = "Also make a picture of it with the bundled model, beside no guidance and cfg(4), from the same noise."
SCHEDULE = [SchedulePoint(index, 0, Level.flow(1 - index / 20), 1 - index / 20) for index in range(20)]
"""On which the examples of rules are counted."""


def paper(entry: Entry) -> str:
    """The arXiv number of a rule's first reference, or ""."""
    found = re.search(r"arXiv:(\d{4}\.\d{4,5})", "".join(entry.references[:1]))
    return found[1] if found else ""


def cost(entry: Entry) -> str:
    """The network evaluations that a rule costs in a step of its examples, in words.

    A rule that stands behind others, or asks for no more than the sampler does, counts by itself: what it costs more.
    """
    found: set[int] = set()
    further: dict[str, int] = {}
    more, at_most, passes = False, False, 0
    for stack in map(parse, entry.examples):
        others = Stack(*(rule for rule in stack.rules if type(rule) is not entry.rule))
        at_most = any(rule.data_dependent for rule in stack.parts())
        wanted = max((rule.weight_counts.get("negative", 1) for rule in stack.parts()), default=1)
        (whole, backward), (rest, _) = _by_step(stack, wanted), _by_step(others, wanted)
        more, passes = bool(others.rules) or whole == rest, max(passes, *backward.values())
        found |= {whole[step] - more * rest[step] for step in whole}
        if stack.takes_several and wanted == 1:
            given = {"negative": (2, 0), "positive": (1, 1)}
            further = {kind: max((_by_step(stack, *one)[0] - whole).values(), default=0) for kind, one in given.items()}
    if not found:
        return "not known without an example"
    low, high = min(found), max(found)
    number = f"{low} to {high}" if low < high else f"{high}"
    told = [f"{'at most ' if at_most else ''}{number}{' more' if more else ''}"]
    told += [f"{count} more for each further {kind}" for kind, count in further.items() if count]
    return ", ".join([*told, f"up to {passes} with a backward pass"] if passes else told)


def _by_step(stack: Stack, negatives: int, positives: int = 0) -> tuple[Counter[int], Counter[int]]:
    """The evaluations of each step of the schedule, those of turns included, and how many of them are backwards too."""
    counts, backward = Counter[int](), Counter({when.step: 0 for when in SCHEDULE})
    for one in plan(stack, SCHEDULE, negatives, positives):
        counts[one.when.step] += len(one.queries)
        backward[one.when.step] += sum(query.grad for query in one.queries)
    return counts, backward


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


def entry_of(name: str) -> Entry:
    """The rule of a name.

    Raises:
        InputError: there is none.
    """
    known = {entry.name: entry for entry in registered()}
    if name not in known:
        raise InputError(f"there is no rule {shown(name)}{nearest(name.lower(), known)}")
    return known[name]


def about(entry: Entry) -> str:
    """What a rule's class says of it as plain text, without its examples in Python."""
    return plain((inspect.getdoc(entry.rule) or "").partition("\n>>>")[0].strip())


def page(entry: Entry) -> str:
    """One rule's page as text: how it is called, what its class says, examples, cost and papers."""
    blocks = [entry.signature, about(entry), f"Evaluations a step: {cost(entry)}"]
    if entry.source:
        blocks.append(f"Of the file {entry.source.name}")
    if entry.examples:
        blocks.append("Examples:\n" + textwrap.indent("\n".join(entry.examples), "    "))
    return "\n\n".join([*blocks, *(reference.strip() for reference in entry.references)])


def write_picture(entry: Entry, path: Path) -> None:
    """A labelled picture of the bundled model's images under a rule's examples, beside those without and under CFG.

    Raises:
        GuidestackError: the rule has no example, the bundled model cannot run it, or the file cannot be written.
    """
    from ..pipelines.models import files
    from ..pipelines.models.generator import Asked, Generator

    if path.suffix.lower() != ".png":
        raise InputError(f"--picture is a picture, and its name ends in .png; got {shown(str(path))}")
    if not entry.examples:
        raise InputError(f"the rule {entry.name} has no example to make a picture of")
    files.check_writable(path.parent, path.name)
    stacks = list(dict.fromkeys(str(parse(text)) for text in ("stack()", "cfg(4)", *entry.examples)))
    generator = Generator(None, "float32", networks={"weak": "bundled"})
    for stack in stacks:
        generator.check(stack, SAMPLER, STEPS)
    asked = [Asked(prompt, seed) for seed, prompt in enumerate(PICTURED)]
    columns = [generator.make(asked, stack, SAMPLER, STEPS).images for stack in stacks]
    table = [[column.get(row) for column in columns] for row in range(len(PICTURED))]
    files.make_folder(path.parent)
    files.write(files.grid(table, PICTURED, stacks), path)


def rules_as_json(entries: Sequence[Entry]) -> list[dict[str, str]]:
    """The rules: what the command prints of each."""
    return [
        {
            "name": entry.name,
            "signature": entry.signature,
            "summary": entry.summary,
            "evaluations": cost(entry),
            "arxiv": paper(entry),
        }
        for entry in entries
    ]


@click.command()
@click.argument("name", required=False)
@click.option("--picture", type=click.Path(path_type=Path), metavar="FILE.png", help=PICTURE)
@click.option("--markdown", "as_markdown", is_flag=True, help="Print the table of docs/rules.md.")
@click.option("--presets", is_flag=True, help="List the presets that come with guidestack, for --guidance @NAME.")
@click.option("--compositions", is_flag=True, help="Print docs/compositions.md: which rules go together.")
@rules_option
@json_option
def command(
    name: str | None, picture: Path | None, as_markdown: bool, presets: bool, compositions: bool, as_json: bool
) -> None:
    """List the guidance rules: parameters, evaluations a step of an example, paper.

    With NAME, everything about that rule: its equation, its parameters, its papers.
    """
    if (name is not None or picture is not None) and (as_markdown or presets or compositions):
        raise InputError("NAME and --picture are for one rule; drop --markdown, --presets and --compositions")
    if picture is not None and name is None:
        raise InputError("--picture is of one rule; name it: guidestack rules NAME --picture FILE.png")
    if name is not None:
        entry = entry_of(name)
        if as_json:
            echo_json({"rules": [{**one, "about": about(entry)} for one in rules_as_json([entry])]})
        else:
            click.echo(page(entry))
        if picture is not None:
            write_picture(entry, picture)
            click.echo(f"picture: {picture}", err=True)
        return
    if as_json:
        if as_markdown or compositions:
            raise InputError("--json is for the list of rules and for --presets; drop --markdown and --compositions")
        echo_json({"presets": presets_as_json()} if presets else {"rules": rules_as_json(registered())})
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
