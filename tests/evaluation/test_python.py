"""Sweeps from Python: the names of `guidestack.evaluation`, which the commands call too."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from guidestack import evaluation
from guidestack.evaluation import RunFolder, load_sweep, parse_metric, report, run
from guidestack.evaluation.store.folder import parquet_bytes
from guidestack.guidance.errors import GuidestackError, InputError, NonFiniteError

from ..test_package import loaded
from .common import PLAIN, rows, written

SMALL: dict[str, Any] = {**PLAIN, "prompts": ["a cat", "red"], "metrics": ["saturation"], "baseline": {"w": 2}}
SMALL["stack"] = "cfg({w})"


@pytest.fixture(scope="module")
def folder(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run of a sweep that is a mapping, whose model is a path."""
    return run({"model": model_folder, **SMALL}, tmp_path_factory.mktemp("python") / "run", progress=False)


def test_names_are_functions_whatever_was_imported_before() -> None:
    assert set(evaluation.__all__) == {
        "RunFolder",
        "Sweep",
        "interpolation",
        "load_sweep",
        "metrics",
        "parse_metric",
        "plan",
        "report",
        "run",
        "verdicts",
        "world",
    }
    for name in ("run.runner", "report.page", "metrics.registry"):
        importlib.import_module(f"guidestack.evaluation.{name}")
    assert callable(evaluation.run)
    assert callable(evaluation.report)
    before = "import guidestack.evaluation.run.runner, guidestack.evaluation.report.page"
    assert loaded(f"{before}; from guidestack.evaluation import report, run; assert callable(run) and callable(report)")
    assert not loaded("import guidestack.evaluation") & {"torch", "pyarrow", "scipy"}


def test_a_run_has_records_images_metrics_and_a_summary(folder: RunFolder) -> None:
    table = folder.records()
    assert isinstance(table, pa.Table)
    assert table.num_rows == 4
    assert folder.image(table["image"][0].as_py()).size == (16, 16)
    assert set(folder.metrics()["text"].to_pylist()) == {"saturation"}
    assert folder.metrics().num_rows == 2
    first, *_, last = folder.summary().splitlines()
    assert first.split()[:2] == ["cell", "saturation"]
    assert "saturation" in last
    assert folder.values().num_rows == 4


def test_a_mapping_a_file_and_the_command_are_the_same_sweep(
    folder: RunFolder, command: Any, model_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "s.yaml").write_text(written(model_folder, **SMALL))
    assert load_sweep(tmp_path / "s.yaml") == load_sweep({"model": str(model_folder), **SMALL})
    status, said, err = command("evaluate", tmp_path / "s.yaml", "--out", tmp_path / "run")
    assert status == 0, err
    assert folder.summary() in said
    assert rows(RunFolder(tmp_path / "run")) == rows(folder)
    other = run(tmp_path / "s.yaml", tmp_path / "other", progress=False)
    assert rows(other) == rows(folder)


def test_a_run_goes_on_and_grows(folder: RunFolder, model_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    sweep = load_sweep({"model": str(model_folder), **SMALL})
    before = rows(folder)
    assert rows(run(sweep, folder)) == before
    assert capfd.readouterr().out == ""
    grown = run(sweep, str(folder), times=2, progress=True)
    told = capfd.readouterr()
    assert told.out == ""  # a program's own
    assert "4/4" in told.err
    assert grown.records().num_rows == 8
    assert [row for row in rows(grown) if row in before] == before


def test_the_page(folder: RunFolder, command: Any) -> None:
    told: list[str] = []
    page = report(folder, ["contrast"], embed=0, progress=told.append)
    assert page == f"{folder}/report.html"
    assert "contrast" in Path(page).read_text()
    assert told[-1] == "the page"
    status, said, _ = command("report", folder)
    assert (status, said) == (0, f"report: {page}\n")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"stpes": 3}, "the sweep: unknown key 'stpes'; did you mean 'steps'"),
        ({"steps": np.int64(3)}, "the sweep has texts, numbers, lists and mappings: .*int64"),
        ({"prompts": "nowhere.txt"}, "cannot read the file 'nowhere.txt'"),
        ({"stack": "cgf({w})"}, "did you mean 'cfg'"),
        ({"metrics": ["saturatoin"]}, "did you mean 'saturation'"),
        ({"model": "./nowhere"}, "no model at"),
    ],
)
def test_bad_sweeps_are_the_projects_errors(
    given: dict[str, Any], message: str, model_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(GuidestackError, match=message):
        run({"model": model_folder, **SMALL, **given}, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_bad_calls_are_the_projects_errors(model_folder: Path, tmp_path: Path) -> None:
    inside: dict[str, Any] = {}
    inside["axes"] = inside
    for given in (inside, {"stack": 3}, {}):
        with pytest.raises(InputError):
            load_sweep(given)
    with pytest.raises(InputError, match="no sweep 'smok'"):
        load_sweep("smok")
    with pytest.raises(InputError, match="times must be a whole number"):
        run({"model": model_folder, **SMALL}, tmp_path / "run", times=0)
    with pytest.raises(InputError, match="device 'cuda:99' cannot be used"):
        run({"model": model_folder, **SMALL}, tmp_path / "run", device="cuda:99")
    empty = RunFolder(tmp_path)
    for read in (empty.metrics, empty.summary, lambda: report(tmp_path)):
        with pytest.raises(InputError, match=r"has no metrics.parquet|is no run folder"):
            read()
    with pytest.raises(InputError, match="did you mean 'saturation'"):
        parse_metric("saturatoin")


def test_lost_samples_are_told_after_the_others_are_measured(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from guidestack.evaluation.run import runner
    from guidestack.evaluation.run.progress import Outcome

    outcome = Outcome(lost=1, cause="NaN")
    whole = runner.run_sweep

    def losing(*arguments: Any) -> Any:
        whole(*arguments)
        return outcome

    monkeypatch.setattr(sys.modules["guidestack.evaluation.run.runner"], "run_sweep", losing)
    with pytest.raises(NonFiniteError, match=r"1 sample is lost and all others kept.*NaN"):
        run({"model": model_folder, **SMALL}, tmp_path / "run", progress=False)
    assert RunFolder(tmp_path / "run").metrics().num_rows == 2


def test_metrics_that_are_damaged(folder: RunFolder, tmp_path: Path) -> None:
    good = folder.metrics()
    nothing = pa.nulls(len(good), pa.string())
    for broken in (
        b"PAR1",
        parquet_bytes(good.drop_columns(["note"])),
        parquet_bytes(good.set_column(3, "value", nothing.fill_null("many"))),
        parquet_bytes(good.set_column(1, "metric", nothing)),
        parquet_bytes(good.append_column("cell", good["cell"])),
    ):
        (tmp_path / "metrics.parquet").write_bytes(broken)
        with pytest.raises(InputError, match=r"metrics.parquet of .* is damaged"):
            RunFolder(tmp_path).metrics()
