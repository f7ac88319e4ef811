"""``make evidence``: what is of other weights is made anew, step by step, by commands that exist."""

from __future__ import annotations

import importlib
import json
import shlex
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from guidestack.scripts import cli
from guidestack.scripts.dev import evidence


@pytest.fixture
def ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The steps that were run; two of them, the second of which fails as long as its name is in the list thrice."""
    names: list[str] = []

    def step(name: str, fails: int = 0) -> evidence.Step:
        def run(out: Path) -> None:
            names.append(name)
            if names.count(name) <= fails:
                raise evidence.StepFailedError("it ended with status 3")

        return evidence.Step(name, "a thing", run)

    monkeypatch.setattr(evidence, "STEPS", (step("one"), step("two", fails=1), step("three")))
    monkeypatch.setattr(evidence, "MADE", tmp_path / "made.json")
    monkeypatch.setattr(evidence, "weights", lambda: "now")
    return names


def run(*arguments: str) -> tuple[int, str]:
    found = CliRunner().invoke(evidence.main, arguments)
    return found.exit_code, found.output


def test_a_run_goes_on_where_it_was_stopped_and_makes_nothing_twice(ran: list[str]) -> None:
    evidence.MADE.write_text(json.dumps({"three": {"weights": "before", "seconds": 120}}))
    status, said = run()
    assert (status, ran) == (1, ["one", "two"])
    assert "weights now: 0 of 3 steps made already\n" in said
    assert "[1/3] one: a thing; left: about 2 min and 2 steps never timed\n" in said
    assert "it ended with status 3" in said
    assert run()[0] == 0
    assert ran == ["one", "two", "two", "three"]
    assert {name: one["weights"] for name, one in json.loads(evidence.MADE.read_text()).items()} == dict.fromkeys(
        ("one", "two", "three"), "now"
    )
    assert run() == (0, "weights now: 3 of 3 steps made already\n")
    assert run("--again", "--list")[0] == 0
    assert len(ran) == 4


COMMANDS = {step.name: step for step in evidence.STEPS}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_commands_of_a_step_exist_and_take_their_arguments(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, ...]] = []

    def called(*command: Any) -> None:
        told.append(tuple(map(str, command)))

    for attribute, value in {
        "called": called,
        "WORK": tmp_path,
        "FIT": tmp_path / "fit",
        "replacing": _nothing,
    }.items():
        monkeypatch.setattr(evidence, attribute, value)
    monkeypatch.setattr(evidence.shutil, "copyfile", lambda source, to: None)
    COMMANDS[name].run(tmp_path / "out")
    assert told
    for module, *arguments in told:
        command = _command(module)
        if isinstance(command, click.Group):
            group, (first, *arguments) = command, arguments
            command = group.get_command(click.Context(group), first)  # type: ignore[assignment]
            assert command is not None, first
        if command is None:
            assert not arguments
        else:
            command.make_context(module, list(arguments))  # which parses them


class _nothing:
    def __init__(self, path: Path) -> None: ...

    def __enter__(self) -> None: ...

    def __exit__(self, *error: object) -> None: ...


def _command(module: str) -> click.Command | None:
    if module == "cli":
        return cli.group
    name = f"guidestack.scripts.{module}"
    found = importlib.import_module(f"{name}.__main__" if module in ("dev.emoji", "dev.figures") else name)
    command = found.group if hasattr(found, "group") else found.main
    return command if isinstance(command, click.Command) else None  # the tables take no arguments


def test_a_command_runs_in_a_process_of_its_own_and_its_failure_ends_the_step(
    capfd: pytest.CaptureFixture[str],
) -> None:
    evidence.called("cli", "--version")
    assert capfd.readouterr().out.startswith("guidestack, version")
    with pytest.raises(evidence.StepFailedError, match="cli rulez ended with status 2"):
        evidence.called("cli", "rulez")


def test_the_demo_picture_is_that_of_make_demo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    makefile = (Path(evidence.__file__).parents[2] / "Makefile").read_text()
    recipe = makefile.partition("\ndemo:")[2].partition("\n\n")[0].partition("guidestack generate")[2]
    told: list[str] = []
    monkeypatch.setattr(evidence, "called", lambda *command: told.extend(map(str, command[2:])))
    evidence._demo(tmp_path)
    theirs = shlex.split(recipe.replace("\\\n", " "))
    where = ("--out", "--grid", "--device")  # on a CPU, wherever it is made
    for words in (told, theirs):
        for name in where:
            if name in words:
                del words[words.index(name) : words.index(name) + 2]
    assert told == theirs
