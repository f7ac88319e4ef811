"""Every command line of the README and of docs/ is one that `guidestack` reads: options, values and stacks."""

from __future__ import annotations

import itertools
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from guidestack.guidance.notation.presets import read
from guidestack.scripts.cli import COMMANDS, group

ROOT = Path(__file__).parent.parent
OTHERS = ("|", ">", "2>", "&&", "...")
"""What ends a command for the shell, or for a reader."""
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def commands(text: str) -> list[list[str]]:
    """The words of each line that calls guidestack, in blocks of a shell."""
    found = []
    for kind, block in re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        if kind not in ("", "sh", "bash", "console"):
            continue
        for line in block.replace("\\\n", " ").splitlines():
            called = re.match(r"(?:\$ )?(?:[A-Z_]+=\S+ )*(?:\S*/)?guidestack (?!:)(.*)", line)
            if called and called[1][:1] not in "|>":
                found.append(shlex.split(called[1], comments=True))
    return found


def pages() -> list[Any]:
    return [
        pytest.param(words, id=f"{page.stem}: {' '.join(words)[:60]}")
        for page in PAGES
        for words in commands(page.read_text(encoding="utf-8"))
    ]


@pytest.mark.parametrize("words", pages())
def test_it_is_a_command(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    name, *rest = itertools.takewhile(lambda word: word not in OTHERS and not word.startswith("["), words)
    if name in ("--help", "-h", "--version"):
        return
    assert name in COMMANDS
    command = group.get_command(None, name)  # type: ignore[arg-type]
    assert command is not None
    if "--rules" in rest:
        return  # it would run the file
    with command.make_context(name, rest) as given:
        guidance = given.params.get("guidance") or ()
        stacks = [guidance] if isinstance(guidance, str) else [*guidance]
        for stack in filter(None, [*stacks, given.params.get("stack")]):
            if "..." not in stack and "{" not in stack and not re.match(r"@.*/", stack):
                read(stack)
