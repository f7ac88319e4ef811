"""``python -m guidestack.scripts.dev.worlds``: the papers' claims in exact worlds; writes docs/exact-world.md."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import click
import torch

from ...evaluation.verdicts import overall
from ...evaluation.world import claims
from ...evaluation.world.claims import Claim, Finding, Store
from ..options import notices, threads_option
from .figures.shared import fill

PAGE = Path("docs/exact-world.md")


def rows(found: Sequence[Finding]) -> str:
    """The table of a claim."""
    lines = ["| expected | world | here | difference, 95% | matters from | |", "|---|---|---|---|---|---|"]
    for one in found:
        lines.append(
            f"| {one.expected} | {one.where} | {one.of:.4g} and {one.than:.4g} | {one.difference} | {one.matters:g} | "
            f"{one.said} |"
        )
    return "\n".join(lines)


def made(found: Sequence[tuple[str, Claim, list[Finding]]], store: Store) -> str:
    """What the page has between its marks."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "diffusers"))
    lines = [
        f"Made {datetime.now(UTC):%Y-%m-%d} with {store.batches} batches of {store.size} samples a cell on "
        f"{platform.machine()} ({torch.backends.cpu.get_cpu_capability()}), {versions}.\n",
        "| claim | paper | in the worlds |",
        "|---|---|---|",
    ]
    for name, claim, each in found:
        paper = f"[{claim.paper}](https://arxiv.org/abs/{claim.paper})"
        words = claim.words.replace("|", "\\|")
        lines.append(f"| [{words}](#{name}) | {paper} | {overall(each)} |")
    for name, claim, each in found:
        lines += ["", f"### {name}", "", f"{claim.words} *{overall(each)}.*", ""]
        lines += ["| cell | how it is drawn |", "|---|---|"]
        for cell, how in claim.cells.items():
            stack = how.stack.replace("|", "\\|")
            lines.append(f"| {cell} | `{stack}`{how.beside} |")
        lines += ["", rows(each)]
        lines += ["", claim.remark] if claim.remark else []
    return "\n".join(lines) + "\n"


@click.command()
@click.argument("chosen", nargs=-1)
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/worlds"), show_default=True)
@click.option("--batches", type=click.IntRange(4), default=claims.BATCHES, show_default=True)
@click.option("--size", type=click.IntRange(100), default=claims.SIZE, show_default=True, help="Samples of a batch.")
@threads_option
def main(chosen: tuple[str, ...], out: Path, batches: int, size: int) -> None:
    """Test the claims CHOSEN, all by default, and write the page if it is all of them; --out keeps what was drawn."""
    store, found = Store(out, batches, size), []
    with notices():
        for name in chosen or claims.names():
            claim = claims.load_claim(name)
            each = claims.findings(claim, store)
            click.echo("\n".join([f"{name}: {overall(each)}", *(f"  {one.told}" for one in each)]))
            found.append((name, claim, each))
    if not chosen:
        fill(PAGE, "worlds", made(found, store))
        click.echo(f"written: {PAGE}")


if __name__ == "__main__":
    main()
