"""The page "Write a rule", followed to the letter in an empty folder."""

from __future__ import annotations

import importlib
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from guidestack import guidance
from guidestack.guidance.notation.plugins import GROUP
from guidestack.guidance.notation.registry import _ENTRIES
from guidestack.scripts import cli

PAGE = (Path(__file__).parent.parent / "docs" / "write-a-rule.md").read_text()
FILES = {name: text for _, name, text in re.findall(r"```(python|yaml)\n# (\S+)\n(.*?)```", PAGE, re.DOTALL)}
COMMANDS = [line for block in re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
SLOW = ("guidestack doctor", "guidestack evaluate", "guidestack report")


@pytest.fixture
def folder(own_rules: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the files of the page and nothing else, in which the reader is."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in FILES:
        sys.modules.pop(Path(name).stem, None)


def run(command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """What a command of the page prints, as a process of its own: it knows no rules but ours."""
    for name in [name for name, entry in _ENTRIES.items() if entry.source is not None]:
        del _ENTRIES[name]
    monkeypatch.setattr(sys, "argv", shlex.split(command))
    status = None
    try:
        cli.main()
    except SystemExit as leave:
        status = leave.code
    out, err = capsys.readouterr()
    assert not status, err
    return out


def test_its_blocks_are_what_this_test_runs() -> None:
    assert set(FILES) == {"cfg_zero.py", "test_cfg_zero.py", "zero.yaml"}
    assert {shlex.split(command)[0] for command in COMMANDS} == {"guidestack", "pytest"}
    assert PAGE.count("```") == 2 * (len(FILES) + 4 + 1)  # four blocks of commands, and one of a package


def test_it_uses_public_names_only() -> None:
    for name in ("cfg_zero.py", "test_cfg_zero.py"):
        for module, names in re.findall(r"^from (guidestack\S*) import (.*)$", FILES[name], re.MULTILINE):
            assert module == "guidestack.guidance"
            assert set(names.split(", ")) <= set(dir(guidance))


def test_its_tests_pass_on_its_rule(folder: Path) -> None:
    assert "pytest test_cfg_zero.py" in COMMANDS
    tests = importlib.import_module("test_cfg_zero")
    found = [name for name in vars(tests) if name.startswith("test_")]
    assert found == ["test_values", "test_zeroed_steps"]
    for name in found:
        getattr(tests, name)()


def test_its_reference_sees_a_wrong_rule(folder: Path) -> None:
    tests = importlib.import_module("test_cfg_zero")
    with pytest.raises(guidance.RuleCheckError, match=r"12\. golden values"):
        guidance.check_rule(tests.CFGZero(3.9), reference=tests.guided)


@pytest.mark.parametrize("command", [one for one in COMMANDS if not one.startswith(("pytest", *SLOW))])
def test_its_commands_run(command: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    said = run(command, monkeypatch, capsys)
    wanted = {
        "rules": "cfgzero(scale=4, zero_steps=0)\n    CFG-Zero*: classifier-free guidance",
        "explain": "     0        157.4            1  positive\n     1 ",
        "generate": "2 images in images: 40 network evaluations",
    }
    assert wanted[command.split()[1]] in said


@pytest.mark.slow
def test_its_sweep_and_the_doctor_run(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    doctor, evaluate, report = (one for one in COMMANDS if one.startswith(SLOW))
    assert re.search(r"^cfgzero\(\) +2$", run(doctor, monkeypatch, capsys), re.MULTILINE)
    said = run(evaluate, monkeypatch, capsys)
    assert "8 images made: 80 network evaluations" in said
    assert "cfgzero" in run(report, monkeypatch, capsys) + (folder / "run" / "report.html").read_text()


def test_its_package_has_the_group_of_entry_points() -> None:
    (block,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    assert list(tomllib.loads(block)["project"]["entry-points"]) == [GROUP]
