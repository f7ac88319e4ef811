"""``python -m guidestack.scripts.dev.evidence``: make anew everything that was made from the bundled weights.

Each step calls the commands that make it. What a step made, and of which weights, is written into ``docs/made.json``: a
step whose weights are the present ones is skipped, so that the same command continues where it was stopped, on another
machine too. The steps themselves go on within: claims by claim, the tuning by stack. Samples lie in
``out/evidence/WEIGHTS``, since a run folder is of one model.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from ...evaluation.run.estimate import span
from ...evaluation.tune.goal import read_goal
from ...guidance.files import replacing, write_whole
from ...guidance.words import counted
from ...pipelines.models.bundled import EMOJI
from ..options import notices
from .claims import weights
from .emoji.__main__ import WORK
from .figures.specs import CASES

COMMAND_LINE = "from guidestack.scripts.cli import main; main()"
MADE = Path("docs/made.json")
FIT = Path("configs/emoji-cfg4-20.safetensors")
TUNED = {
    "half": ("--evaluations", "25"),
    "least": ("--likeness", "adaptive(cfg(4), threshold=0.97, space='denoised')"),
}
"""The arguments of `guidestack tune` for each tuned preset."""
DEMO = tuple(case.prompt for case in CASES)
STACKS = ("stack()", "cfg(2)", "cfg(4)", "cfg(8)", "cfg(8) | rescale(0.7)")
"""Prompts and stacks of docs/demo.png, as `make demo` has them."""


class StepFailedError(click.ClickException):
    """A command of a step failed; the steps before it are made."""


def called(*command: str | Path) -> None:
    """Run a command of guidestack in a process of its own, with its bar.

    Raises:
        StepFailedError: it ended with another status than 0.
    """
    module, *rest = map(str, command)
    how = ["-c", COMMAND_LINE] if module == "cli" else ["-m", f"guidestack.scripts.{module}"]
    status = subprocess.run([sys.executable, *how, *rest], check=False).returncode
    if status:
        raise StepFailedError(f"{module} {' '.join(rest)} ended with status {status}; run it again to continue")


def _card(out: Path) -> None:
    if not (WORK / "pictures.safetensors").exists():
        called("dev.emoji", "harvest")
    called("dev.emoji", "measure", EMOJI, "--features", "--to", EMOJI / "measured.json")
    called("dev.emoji", "card", EMOJI)


def _coefficients(out: Path) -> None:
    from .emoji.harvested import random_prompts

    out.mkdir(parents=True, exist_ok=True)
    prompts, fresh = out / "fit.txt", out / FIT.name
    prompts.write_text("\n".join(random_prompts(200, 0)) + "\n", encoding="utf-8")
    if not fresh.exists():
        called("cli", "fit-linear-ag", "--prompts", prompts, "--device", "cpu", "--out", fresh)
    with replacing(FIT) as path:
        shutil.copyfile(fresh, path)


def _tuned(out: Path) -> None:
    folders = {name: out / "tune" / read_goal(*_goal(told)).name for name, told in TUNED.items()}
    for name, told in TUNED.items():
        called("cli", "tune", "--device", "cpu", "--out", out / "tune", *told)
        with replacing(Path(f"configs/tuned-emoji-{name}.yaml")) as path:
            shutil.copyfile(folders[name] / "tuned.yaml", path)
    called("dev.figures", "tune", folders["least"])
    called("cli", "evaluate", "reuse", "--device", "cpu", "--out", out / "reuse")
    called("dev.figures", "tune", out / "reuse", "--name", "reuse")


def _goal(told: tuple[str, str]) -> tuple[str | None, float | None]:
    return (told[1], None) if told[0] == "--likeness" else (None, float(told[1]))


def _demo(out: Path) -> None:
    stacks = [part for stack in STACKS for part in ("--guidance", stack)]
    how = ("--steps", "20", "--seed", "1", "--batch", "3", "--device", "cpu")
    called("cli", "generate", *DEMO, *stacks, *how, "--out", out / "demo", "--grid", "docs/demo.png")


def _figures(out: Path) -> None:
    for name in ("methods", "edit", "objectives"):
        called("dev.figures", name)


@dataclass(frozen=True)
class Step:
    """A step.

    Args:
        name: of it.
        makes: what, in words.
        run: makes it; its argument is the folder for samples.
    """

    name: str
    makes: str
    run: Callable[[Path], None]


STEPS = (
    # The card first: its figures lie in the model's folder, whose fingerprint every later run takes.
    Step("card", "pipelines/emoji/README.md", _card),
    Step("coefficients", str(FIT), _coefficients),
    Step("tuned", "configs/tuned-emoji-*.yaml, docs/tuning.md", _tuned),
    Step("demo", "docs/demo.png", _demo),
    Step("figures", "docs/methods, docs/methods.md, docs/edit.png, docs/objectives.png", _figures),
    Step("notebooks", "the outputs in docs/notebooks", lambda out: called("dev.notebooks")),
    Step("claims", "docs/claims, docs/evidence.md", lambda out: called("dev.claims", "--out", out / "claims")),
    Step("tables", "the tables of docs/", lambda out: called("dev.tables")),
)


def made() -> dict[str, dict[str, Any]]:
    """What was made, by step: of which weights, and in how many seconds."""
    return dict(json.loads(MADE.read_text(encoding="utf-8"))) if MADE.exists() else {}


def left(steps: Sequence[Step], before: dict[str, dict[str, Any]]) -> str:
    """How long steps will take, as far as they were made before."""
    known = [before[one.name]["seconds"] for one in steps if "seconds" in before.get(one.name, {})]
    rest = len(steps) - len(known)
    more = f"{' and ' * bool(known)}{counted(rest, 'step')} never timed" if rest else ""
    return (f"about {span(sum(known))}" if known else "") + more


@click.command()
@click.argument("chosen", nargs=-1, type=click.Choice([one.name for one in STEPS]))
@click.option("--again", is_flag=True, help="Also what is of the present weights already.")
@click.option("--list", "listed", is_flag=True, help="Say what there is to make; make nothing.")
def main(chosen: tuple[str, ...], again: bool, listed: bool) -> None:
    """Make what was made of other weights: the steps CHOSEN, all by default. The same command continues it."""
    with notices():
        now = weights()
        steps = [one for one in STEPS if not chosen or one.name in chosen]
        todo = [one for one in steps if again or made().get(one.name, {}).get("weights") != now]
        click.echo(f"weights {now}: {len(steps) - len(todo)} of {counted(len(steps), 'step')} made already")
        for place, one in enumerate(todo, 1):
            click.echo(f"[{place}/{len(todo)}] {one.name}: {one.makes}; left: {left(todo[place - 1 :], made())}")
            if listed:
                continue
            began = time.monotonic()
            one.run(Path("out/evidence") / now)
            seconds = round(time.monotonic() - began)
            told = {**made(), one.name: {"weights": now, "seconds": seconds}}
            write_whole(MADE, json.dumps(told, indent=1) + "\n")
            click.echo(f"[{place}/{len(todo)}] {one.name}: done in {span(seconds)}")


if __name__ == "__main__":
    main()
