"""Rules of one's own in a sweep: the key ``rules``, the addresses of samples, and what a run folder says of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from guidestack.evaluation.metrics import registry
from guidestack.evaluation.report.report import report
from guidestack.evaluation.run.runner import Options, Prepared
from guidestack.evaluation.spec.cells import Addresses, expand
from guidestack.evaluation.spec.sweep import load_sweep
from guidestack.evaluation.store.folder import RunFolder
from guidestack.guidance.errors import InputError, StackSyntaxError
from guidestack.guidance.notation import plugins
from guidestack.guidance.notation import registry as notation
from guidestack.guidance.notation.plugins import load_rules, loaded_files
from guidestack.guidance.notation.registry import _ENTRIES
from guidestack.pipelines.models.files import read_recipe

from ..own_rules import HALVED, OTHER, written
from . import common

pytestmark = pytest.mark.usefixtures("own_rules")

KEYS: dict[str, Any] = {
    "prompts": ["a cat", "red"],
    "seeds": [0],
    "stack": ["cfg({w})", "halved({w})"],
    "axes": {"w": [2]},
    "steps": 2,
    "metrics": ["saturation"],
}


def forget() -> None:
    """As in a process that has imported no file."""
    for name in [name for name, entry in _ENTRIES.items() if entry.source is not None]:
        del _ENTRIES[name]


@pytest.fixture
def folder(model_folder: Path, tmp_path: Path) -> Iterator[Path]:
    """A folder with a sweep, and the file of rules beside it."""
    written(tmp_path / "mine.py")
    (tmp_path / "s.yaml").write_text(common.written(model_folder, **KEYS, rules="mine.py"))
    yield tmp_path
    forget()


def by_stack(run: RunFolder) -> dict[str, set[str]]:
    """The addresses of the samples of each stack."""
    found: dict[str, set[str]] = {}
    for row in common.rows(run):
        found.setdefault(row["stack"], set()).add(row["address"])
    return found


def test_a_sweep_with_a_rule_of_a_file(command: Any, folder: Path) -> None:
    out = folder / "run"
    status, said, err = command("evaluate", folder / "s.yaml", "--out", out)
    assert status == 0, err
    assert "4 images made" in said
    run = RunFolder(out)
    assert {stack: len(each) for stack, each in by_stack(run).items()} == {"cfg(2)": 2, "halved(scale=2)": 2}
    (file,) = loaded_files()
    cells = {cell["stack"]: cell.get("rules") for cell in run.cells()["cells"]}
    assert cells == {"cfg(2)": None, "halved(scale=2)": [file.digest]}
    recipes = [read_recipe(path) for path in out.rglob("*.png")]
    assert {one["guidance"]: one.get("rules") for one in recipes} == {
        "cfg(2)": None,
        "halved(scale=2)": [{"file": "mine.py", "digest": file.digest}],
    }
    forget()
    assert yaml.safe_load((out / "sweep.yaml").read_text())["rules"] == [str(folder / "mine.py")]
    status, said, err = command("evaluate", out / "sweep.yaml", "--out", out)  # which the user runs himself
    assert (status, "0 images made, 4 were there already" in said) == (0, True), err


PAGE = Path(plugins.__file__).parents[2] / "docs" / "metrics.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
DARKNESS = next(block for block in BLOCKS if '@register("darkness")' in block)


def test_a_file_with_a_metric_only(
    command: Any, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = dict(registry._METRICS)
    monkeypatch.setattr(registry, "_METRICS", dict(known))
    file, sweep, out = written(tmp_path / "metric.py", DARKNESS), tmp_path / "s.yaml", tmp_path / "run"
    sweep.write_text(common.written(model_folder, **{**KEYS, "stack": ["cfg({w})"], "metrics": ["darkness"]}))
    status, _, err = command("evaluate", sweep, "--out", out, "--rules", file)
    assert status == 0, err
    assert command("report", out, "--rules", file)[0] == 0  # the same contents again do nothing
    monkeypatch.setattr(registry, "_METRICS", dict(known))
    monkeypatch.setattr(notation, "OTHERS", set())
    monkeypatch.setattr(plugins, "OTHERS", notation.OTHERS)
    status, _, err = command("report", out)
    assert (status, "unknown metric 'darkness'" in err, "--rules FILE.py" in err) == (2, True, True), err
    status, _, err = command("report", out, "--rules", file)
    assert status == 0, err
    assert "darkness" in (out / "report.html").read_text()


def test_the_rules_of_the_command_line_go_into_the_folders_sweep(
    command: Any, model_folder: Path, folder: Path
) -> None:
    (folder / "s.yaml").write_text(common.written(model_folder, **KEYS))
    status, _, err = command("evaluate", folder / "s.yaml", "--out", folder / "run")
    assert (status, "unknown rule 'halved'" in err) == (2, True)
    status, _, err = command("evaluate", folder / "s.yaml", "--out", folder / "run", "--rules", folder / "mine.py")
    assert status == 0, err
    first = by_stack(RunFolder(folder / "run"))
    forget()
    status, said, err = command("evaluate", folder / "run" / "sweep.yaml", "--out", folder / "run")
    assert (status, "4 were there already" in said) == (0, True), err
    forget()
    (folder / "s.yaml").write_text(common.written(model_folder, **KEYS, rules=["mine.py"]))
    status, said, err = command("evaluate", folder / "s.yaml", "--out", folder / "other")
    assert by_stack(RunFolder(folder / "other")) == first


def test_another_version_of_the_file_makes_its_samples_and_no_others(command: Any, folder: Path) -> None:
    out = folder / "run"
    assert command("evaluate", folder / "s.yaml", "--out", out)[0] == 0
    before = by_stack(RunFolder(out))
    written(folder / "mine.py", OTHER)
    forget()
    status, said, err = command("evaluate", folder / "s.yaml", "--out", out)
    assert (status, "2 images made" in said) == (0, True), err
    after = by_stack(RunFolder(out))
    assert after["cfg(2)"] == before["cfg(2)"]
    assert len(after["halved(scale=2)"]) == 4  # the records of what was made before stay
    assert before["halved(scale=2)"] < after["halved(scale=2)"]
    told = {cell["cell"] for cell in RunFolder(out).cells()["cells"]}
    listed = [row for row in common.rows(RunFolder(out)) if row["cell"] in told]
    assert len(listed) == 4  # what is measured and reported are those of the file as it is now
    report(RunFolder(out))


def test_addresses_without_a_rules_file_are_as_they_were(model_folder: Path, folder: Path) -> None:
    """Whatever is loaded, and whatever key stands in the sweep."""
    plain = {**KEYS, "stack": "cfg({w})"}
    addresses = Addresses("model")
    (cell,) = expand(common.sweep_of(Path("m"), **{**plain, "prompts": ["a"]}))
    assert (addresses.cell(cell), addresses.of_cell(cell)(b"p", 3)) == (CELL, ADDRESS)
    load_rules(folder / "mine.py")
    (again,) = expand(common.sweep_of(Path("m"), **{**plain, "prompts": ["a"]}, rules=str(folder / "mine.py")))
    assert (addresses.cell(again), addresses.of_cell(again)(b"p", 3)) == (CELL, ADDRESS)
    assert "rules" not in common.sweep_of(model_folder, **plain).as_yaml()


CELL = "0ec44dfad0d5"
ADDRESS = "2b569b4d3b73d20d5195d6fae1bf8fa8"
"""As version 0.1.0.dev0 had them before there were files of rules."""


def test_addresses_are_of_contents_wherever_the_file_lies(model_folder: Path, folder: Path) -> None:
    def address(path: Path) -> str:
        forget()
        load_rules(path)
        cells = expand(common.sweep_of(model_folder, **KEYS))
        return Addresses("model").cell(cells[1])

    first = address(folder / "mine.py")
    assert address(written(folder / "moved.py")) == first
    assert address(written(folder / "moved.py", HALVED + "\n# another version\n")) != first


def test_reading_a_sweep_imports_nothing(folder: Path) -> None:
    written(folder / "mine.py", f"open({str(folder / 'sprung')!r}, 'w').close()\n")
    sweep = load_sweep(str(folder / "s.yaml"))
    assert sweep.rules == (str(folder / "mine.py"),)
    assert not (folder / "sprung").exists()
    with pytest.raises(StackSyntaxError, match="unknown rule 'halved'"):
        expand(sweep)
    with pytest.raises(InputError, match="registers no rule"):
        Prepared(sweep, Options())
    assert (folder / "sprung").exists()


def test_a_report_imports_nothing_and_needs_nothing(command: Any, folder: Path) -> None:
    out = folder / "run"
    assert command("evaluate", folder / "s.yaml", "--out", out)[0] == 0
    forget()
    written(folder / "mine.py", f"open({str(folder / 'sprung')!r}, 'w').close()\n")
    for missing in (False, True):
        status, _, err = command("report", out)
        assert status == 0, err
        assert "halved" in (out / "report.html").read_text()
        assert command("evaluate", folder / "s.yaml", "--out", out, "--merge-only")[0] == 0
        if not missing:
            (folder / "mine.py").unlink()
    assert loaded_files() == ()
    assert not (folder / "sprung").exists()


@pytest.mark.parametrize(
    ("rules", "text", "message"),
    [
        ("nowhere.py", None, "cannot read the rules file 'nowhere.py': No such file"),
        (["mine.py", "mine.txt"], HALVED, "whose name ends in .py"),
        ("bad.py", "\nfoo\n", "bad.py' cannot be imported, line 2: NameError: name 'foo' is not defined"),
        ("bad.py", "", "registers no rule"),
        ({"file": "mine.py"}, None, "s.yaml: rules"),
        ([3], None, "s.yaml: rules"),
        ([f"{one}.py" for one in range(101)], None, "rules must have at most 100 items"),
    ],
)
def test_what_is_refused(
    command: Any, model_folder: Path, folder: Path, rules: Any, text: str | None, message: str
) -> None:
    (folder / "s.yaml").write_text(common.written(model_folder, **KEYS, rules=rules))
    written(folder / "bad.py", text or "")
    written(folder / "mine.txt")
    status, said, err = command("evaluate", folder / "s.yaml", "--out", folder / "run")
    assert (status, said, err.count("\n")) == (2, "", 1)
    assert message in err
    assert not (folder / "run").exists()


def test_beside_the_sweep_comes_before_the_working_directory(
    command: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    written(elsewhere / "mine.py", OTHER)
    monkeypatch.chdir(elsewhere)
    assert command("evaluate", folder / "s.yaml", "--dry-run")[0] == 0
    (file,) = loaded_files()
    assert file.path == (folder / "mine.py").resolve()
    forget()
    (folder / "mine.py").unlink()
    assert command("evaluate", folder / "s.yaml", "--dry-run")[0] == 0
    (file,) = loaded_files()
    assert file.path == elsewhere / "mine.py"


def _make(folder: str, rank: int) -> None:
    from guidestack.evaluation.run.runner import run_sweep
    from guidestack.evaluation.store.lock import Launch

    launch = Launch(rank=rank, world=2, name="test")
    prepared = Prepared(load_sweep(f"{folder}/s.yaml"), Options(launch=launch))
    run_sweep(prepared, RunFolder(f"{folder}/two"))


@pytest.mark.slow
def test_each_process_of_a_launch_imports_the_file(server: Any, command: Any, folder: Path) -> None:
    processes = [server.Process(target=_make, args=(str(folder), rank)) for rank in range(2)]
    for one in processes:
        one.start()
    for one in processes:
        one.join()
    assert [one.exitcode for one in processes] == [0, 0]
    assert command("evaluate", folder / "s.yaml", "--out", folder / "one")[0] == 0
    assert by_stack(RunFolder(folder / "two")) == by_stack(RunFolder(folder / "one"))
