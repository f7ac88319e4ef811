"""``python -m guidestack.scripts.dev.claims``: test the papers' claims on the bundled model; writes docs/evidence.md.

What is found of a claim is one small file, ``docs/claims/NAME.json``, with the fingerprint of the weights and of the
claim as it was tested: so the claims can be tested one by one, on one machine after another, and the page is made of
what there is. A claim whose file is of the weights and the form of today is not tested again.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click

from ...evaluation import run
from ...evaluation.analysis.findings import findings
from ...evaluation.analysis.planning import plan
from ...evaluation.spec.cells import expand
from ...evaluation.spec.sweep import FOLDERS, Sweep, load_sweep
from ...evaluation.verdicts import Finding, overall
from ...guidance.files import write_whole
from ...guidance.words import counted
from ...pipelines.models.bundled import EMOJI
from ..options import notices, threads_option
from . import beside
from .emoji.measure import weights_of

RESULTS, PAGE = Path("docs/claims"), Path("docs/evidence.md")
BEFORE = "before.txt"
"""In `RESULTS`: what was found of earlier weights, as text; the page has it while a claim is not tested yet."""
HEAD = """# The papers' claims, on the bundled model

Every method's paper says what it is good for. Each claim below is a sweep in `configs/claims/`, or is defined in
`scripts/dev/beside.py` if no sweep can test it. It has the settings of the paper, which are not tuned to this model.
Each row of a claim compares two cells with the same prompts and seeds. The smallest difference that matters was written
down before a row was run. The number of prompts follows from it: enough to find such a difference with a probability
of 80%, by the variance in a pilot of some dozens of prompts, as far as a few hours for the whole page allow.

A row *holds* or *does not hold* if the 95% interval of the difference shows it. If the interval excludes every
difference that matters, the row says *no difference larger than* that. Otherwise it is *undecided*. A claim has the
verdicts of all its rows, so that no row decides for the others. Intervals hold for each row alone: of rows that expect
a difference where there is none, at most 5% say that there is one.

The model is small and draws 64x64 emoji: what does not hold here may well hold elsewhere. The claims about
distributions are also tested in [worlds whose laws are known](exact-world.md), with 20,000 samples a cell.

```
guidestack evaluate configs/claims/NAME.yaml --out RUN    # one claim; --first 32: a pilot; --plan: the prompts it needs
python -m guidestack.scripts.dev.claims                       # all that are not tested yet, and this page
```
"""


def names() -> list[str]:
    """The claims that come with guidestack: sweeps, and what is no sweep."""
    return sorted([path.stem for path in FOLDERS[1].glob("*.yaml")] + list(beside.CLAIMS))


@functools.cache
def weights() -> str:
    """The fingerprint of the bundled weights."""
    return weights_of(EMOJI)


@dataclass(frozen=True)
class Current:
    """A claim as it is now.

    Args:
        name: of its file, or in `beside.CLAIMS`.
    """

    name: str

    @functools.cached_property
    def of(self) -> Any:
        """The claim: its words, its paper, its remark."""
        return beside.CLAIMS.get(self.name) or self.sweep.claim

    @functools.cached_property
    def sweep(self) -> Sweep:
        """The sweep of the claim, read from its file in `configs/claims`."""
        return load_sweep(str(FOLDERS[1] / f"{self.name}.yaml"))

    @property
    def form(self) -> str:
        """A fingerprint of what is tested; words and remarks may change without it."""
        if (other := beside.CLAIMS.get(self.name)) is not None:
            told = repr((other.rows, other.count, other.seed))
        else:
            said = {"words": "-", "remark": ""}
            assert self.sweep.claim is not None  # what these files are for
            told = dataclasses.replace(self.sweep, claim=self.sweep.claim.model_copy(update=said)).as_yaml()
            told += repr([cell.identity for cell in expand(self.sweep)])  # files of coefficients, by their contents
        return hashlib.blake2b(told.encode(), digest_size=8).hexdigest()

    def test(self, out: Path) -> dict[str, Any]:
        """Test it, or what is missing of it, and tell what was found."""
        began = time.monotonic()
        if (other := beside.CLAIMS.get(self.name)) is not None:
            rows = other.found()
        else:
            assert self.sweep.claim is not None  # as above
            rows = findings(run(self.sweep, out / self.name, device="cpu"), self.sweep.claim)
        return {
            "weights": weights(),
            "form": self.form,
            "made": f"{datetime.now(UTC):%Y-%m-%d}",
            "hours": round((time.monotonic() - began) / 3600, 3),
            "machine": platform.machine(),
            "versions": {name: version(name) for name in ("torch", "diffusers", "transformers")},
            "rows": [one.plain() for one in rows],
        }


def known(name: str, results: Path) -> dict[str, Any] | None:
    """What was found of a claim in the form that it has now; None where nothing was."""
    path = results / f"{name}.json"
    if not path.exists():
        return None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found if found["form"] == Current(name).form else None


def table(rows: Sequence[Finding]) -> str:
    """The rows of a claim, in Markdown."""
    lines = ["| expected | here | difference, 95% | matters from | |", "|---|---|---|---|---|"]
    for one in rows:
        lines.append(
            f"| {one.expected} | {one.of:.4g} and {one.than:.4g} | {one.difference} | {one.matters:g} | {one.said} |"
        )
    return "\n".join(lines)


def older(found: Mapping[str, Any], now: str) -> str:
    """The line that says of which weights a claim's rows are, where these are not today's; "" else."""
    if found["weights"] == now:
        return ""
    return f"Measured on earlier weights, `{found['weights']}`; the bundled ones are `{now}`."


def page(results: Path) -> str:
    """The text of docs/evidence.md, from the files of the claims."""
    found = {name: one for name in names() if (one := known(name, results)) is not None}
    lines = [HEAD]
    if found:
        behind = [name for name, one in found.items() if older(one, weights())]
        lines.append(f"Weights `{weights()}`: {counted(len(found) - len(behind), 'claim')} of {len(names())} tested.")
        if behind:
            lines[-1] += f" Of earlier weights, and marked so below: {', '.join(behind)}."
        hours = sum(one["hours"] for one in found.values())
        lines += ["", f"All of them together took {hours:.1f} hours.", ""]
        lines += ["| claim | paper | on this model |", "|---|---|---|"]
    bodies: list[str] = []
    for name, one in found.items():
        claim, rows = Current(name).of, [Finding(**row) for row in one["rows"]]
        paper = f"[{claim.paper}](https://arxiv.org/abs/{claim.paper})"
        mark = " (earlier weights)" if older(one, weights()) else ""
        lines.append(f"| [{claim.words}](#{name}) | {paper} | {overall(rows)}{mark} |")
        versions = ", ".join(f"{package} {number}" for package, number in one["versions"].items())
        made = (
            f"{rows[0].samples} pairs of samples from {counted(rows[0].prompts, 'prompt')}; {one['made']}, {versions}."
        )
        bodies += ["", f"## {name}", "", f"{claim.words} *{overall(rows)}*: {made}", ""]
        bodies += [line, ""] if (line := older(one, weights())) else []
        bodies += [table(rows)]
        bodies += ["", claim.remark] if claim.remark else []
    lines += bodies
    if missing := [name for name in names() if name not in found]:
        lines += ["", "## Not tested yet", "", "In their present form these claims have not been tested:", ""]
        lines += [f"* `{name}`: {Current(name).of.words}" for name in missing]
        if (before := results / BEFORE).exists():
            lines += ["", before.read_text(encoding="utf-8").rstrip("\n")]
    return "\n".join(lines) + "\n"


def write_page(results: Path, to: Path) -> None:
    """Write the page from the files of the claims."""
    write_whole(to, page(results))


@click.command()
@click.argument("chosen", nargs=-1, type=click.Choice(names()))
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/claims"), show_default=True, help="Samples.")
@click.option("--results", type=click.Path(path_type=Path), default=RESULTS, show_default=True)
@click.option("--page", "to", type=click.Path(path_type=Path), default=PAGE, show_default=True)
@click.option("--page-only", is_flag=True, help="Test nothing; write the page from the files that there are.")
@click.option("--pilot", type=click.IntRange(4), help="Test nothing: how many prompts do rows need, by so many?")
@threads_option
def main(chosen: tuple[str, ...], out: Path, results: Path, to: Path, page_only: bool, pilot: int | None) -> None:
    """Test the claims CHOSEN, all by default, but for those of today's weights and form, and write the page."""
    with notices():
        for name in () if page_only else chosen or names():
            one = Current(name)
            if pilot:
                click.echo(f"{name}: {piloted(one, pilot, out)}\n")
                continue
            found = known(name, results)
            if found is not None and not older(found, weights()):
                click.echo(f"{name}: tested already, {results / name}.json")
                continue
            told = one.test(out)
            results.mkdir(parents=True, exist_ok=True)
            write_whole(results / f"{name}.json", json.dumps(told, indent=1) + "\n")
            rows = [Finding(**row) for row in told["rows"]]
            click.echo(f"{name}: {overall(rows)}")
            click.echo("".join(f"  {row.said}: {row.expected}: {row.of:.4g} and {row.than:.4g}\n" for row in rows))
            write_page(results, to)
        if not pilot:
            write_page(results, to)
            click.echo(f"written: {to}")


def piloted(one: Current, count: int, out: Path) -> str:
    """Return how many prompts the rows of a claim need, by a pilot of `count` prompts, which a test then extends."""
    if (other := beside.CLAIMS.get(one.name)) is None:
        return str(plan(one.sweep, run(one.sweep.first(count), out / one.name, device="cpu")))
    began = time.monotonic()
    rows = other.found(count)
    each = (time.monotonic() - began) / count
    lines = [f"  {one.expected}: matters from {one.matters:g}: {counted(one.wanted(), 'prompt')}" for one in rows]
    return "\n".join([f"{each:.3g} s a prompt; {other.count} are asked, {other.count * each / 3600:.2f} h:", *lines])


if __name__ == "__main__":
    main()
