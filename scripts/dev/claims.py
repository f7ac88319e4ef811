"""``python -m guidestack.scripts.dev.claims``: run the papers' claims on the bundled model; writes docs/evidence.md."""

from __future__ import annotations

import json
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from ...evaluation import run
from ...evaluation.analysis import findings as claims
from ...evaluation.spec.sweep import FOLDERS, Sweep, load_sweep
from ..options import notices

HEAD = """# The papers' claims, on the bundled model

Every method's paper says what it is good for. Each claim below is a sweep in `configs/claims/`, written before it was
run and with the settings of the paper, not tuned to this model; what follows from it is tested on the difference of two
cells with the same prompts and seeds. An expectation *holds* or *does not hold* where the whole 95% interval of the
difference lies on one side, and is *undecided* otherwise; intervals are of each row by itself. A claim holds if all its
rows do, and one row that so few prompts cannot decide leaves it undecided: read the rows. Where no pair differs at all,
as in rows of 1 and 1, only more prompts would narrow the interval, more seeds of the same ones would not. The model is
small and draws 64x64 emoji: what does not hold here may well hold elsewhere. The claims about distributions are tested
in [worlds whose laws are known](exact-world.md) as well, with 20,000 samples a cell.

```
guidestack evaluate configs/claims/NAME.yaml --out RUN [--times 4]    # one claim; --times: more seeds
python -m guidestack.scripts.dev.claims --out out/claims                  # all of them, and this page
```
"""


def names() -> list[str]:
    """The claims that come with guidestack."""
    return sorted(path.stem for path in FOLDERS[1].glob("*.yaml"))


def tested(name: str, out: Path, times: int) -> tuple[Sweep, list[claims.Finding], dict[str, Any]]:
    """Run one claim, or what is missing of it: its sweep, what was found, and the versions that made the samples."""
    import dataclasses

    sweep = load_sweep(str(FOLDERS[1] / f"{name}.yaml"))
    sweep = dataclasses.replace(sweep, seeds=sweep.seeds.more(times))
    assert sweep.claim is not None  # what these files are for
    folder = run(sweep, out / name, device="cpu")
    versions = folder.records(["versions", "fingerprint"]).slice(0, 1).to_pylist()[0]
    return (
        sweep,
        claims.findings(folder, sweep.claim),
        {"model": versions["fingerprint"], **json.loads(versions["versions"])},
    )


def page(found: list[tuple[str, Sweep, list[claims.Finding]]], versions: dict[str, Any], times: int) -> str:
    """The text of docs/evidence.md."""
    made = f"Made {datetime.now(UTC):%Y-%m-%d} with `--times {times}` on {platform.machine()}, "
    lines = [HEAD, f"{made}Python {platform.python_version()}, "]
    lines[-1] += ", ".join(f"{key} {value}" for key, value in versions.items()) + ".\n"
    lines += ["| claim | paper | on this model |", "|---|---|---|"]
    for name, sweep, findings in found:
        assert sweep.claim is not None  # as above
        paper = f"[{sweep.claim.paper}](https://arxiv.org/abs/{sweep.claim.paper})"
        lines.append(f"| [{sweep.claim.words}](#{name}) | {paper} | **{claims.overall(findings)}** |")
    for name, sweep, findings in found:
        assert sweep.claim is not None
        samples = f"{findings[0].samples} pairs of samples from {findings[0].prompts} prompts."
        lines += ["", f"## {name}", "", f"{sweep.claim.words} *{claims.overall(findings)}*: {samples}", ""]
        lines += [claims.markdown(findings)]
        lines += ["", sweep.claim.remark] if sweep.claim.remark else []
    return "\n".join(lines) + "\n"


@click.command()
@click.argument("chosen", nargs=-1)
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/claims"), show_default=True)
@click.option("--times", type=click.IntRange(1), default=1, help="Times as many seeds for each prompt.")
@click.option("--page", "to", type=click.Path(path_type=Path), default=Path("docs/evidence.md"), show_default=True)
def main(chosen: tuple[str, ...], out: Path, times: int, to: Path) -> None:
    """Run the claims CHOSEN, all by default, and write the page if it is all of them."""
    with notices():
        found: list[tuple[str, Sweep, list[claims.Finding]]] = []
        versions: dict[str, Any] = {}
        for name in chosen or names():
            sweep, findings, versions = tested(name, out, times)
            assert sweep.claim is not None  # as above
            click.echo(f"{name}: {claims.table(sweep.claim, findings)}\n")
            found.append((name, sweep, findings))
        if not chosen:
            to.write_text(page(found, versions, times), encoding="utf-8")
            click.echo(f"written: {to}")


if __name__ == "__main__":
    main()
