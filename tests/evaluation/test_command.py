"""``guidestack evaluate`` as a user meets it."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from guidestack.evaluation.spec.cells import expand
from guidestack.evaluation.store.folder import RunFolder
from guidestack.guidance.errors import InputError

from .common import written


@pytest.fixture
def evaluate(command: Any) -> Any:
    """``evaluate(*arguments) -> (exit status, stdout, stderr)``, in this process."""
    return functools.partial(command, "evaluate")


def test_a_sweep_from_its_file(evaluate: Any, model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(written(model_folder, prompts="p.txt"))
    (tmp_path / "p.txt").write_text("a cat\nred\n")
    out = tmp_path / "run"
    status, said, _ = evaluate(tmp_path / "s.yaml", "--out", out, "--dry-run")
    assert (status, out.exists()) == (0, False)
    assert "4 cells, 8 images: 48 network evaluations" in said
    status, said, err = evaluate(tmp_path / "s.yaml", "--out", out)
    assert status == 0, err
    assert "8 images made: 48 network evaluations" in said
    assert f"records: {out}/records.parquet, 8 rows" in said
    assert f"guidestack report {out}" in said
    status, said, _ = evaluate(out / "sweep.yaml", "--out", out)
    assert (status, "0 images made, 8 were there already" in said) == (0, True)
    status, said, _ = evaluate(out / "sweep.yaml", "--out", out, "--merge-only")
    assert (status, "8 rows" in said) == (0, True)


@pytest.mark.parametrize(
    ("keys", "options", "message"),
    [
        ({"stpes": 3}, [], "unknown key 'stpes'; did you mean 'steps'?"),
        ({"prompts": "p.jsonl"}, [], "p.jsonl line 2: not JSON"),
        ({"stack": "cfg({w)"}, [], "a brace without its other half"),
        ({"steps": 4}, ["--device", "cuda:99"], "device 'cuda:99' cannot be used"),
        ({"model": "./nowhere"}, [], "no model at"),
        ({}, None, "--out RUN"),
        ({}, ["--merge-only"], "no run folder"),
    ],
)
def test_what_bad_input_gets(
    evaluate: Any, model_folder: Path, tmp_path: Path, keys: dict[str, Any], options: list[str] | None, message: str
) -> None:
    (tmp_path / "s.yaml").write_text(written(model_folder, **keys))
    (tmp_path / "p.jsonl").write_text('"a"\n{\n')
    out = [] if options is None else ["--out", tmp_path / "run", *options]
    status, said, err = evaluate(tmp_path / "s.yaml", *out)
    assert (status, said) == (2, "")
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_the_smoke_sweep_on_the_bundled_model(evaluate: Any, tmp_path: Path) -> None:
    status, said, err = evaluate("smoke", "--out", tmp_path / "run")
    assert status == 0, err
    assert "32 images made: 640 network evaluations" in said
    folder = RunFolder(tmp_path / "run")
    table = folder.records()
    assert table.num_rows == 32
    assert set(table.column("evaluations").to_pylist()) == {20}
    assert folder.image(table.column("image")[0].as_py()).size == (64, 64)
    assert {"label.concept", "label.style", "label.background", "axis.w"} <= set(table.column_names)


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        ("flow-euler", "sampler 'flow-euler' is for a network that emits 'flow'"),
        ("edm-euler", "sampler 'edm-euler' is for a network that emits 'edm"),
        ("lcm", "lcm does not take 60 steps"),
        ("eular", "sampler: unknown sampler 'eular'; did you mean 'euler'?"),
    ],
)
def test_a_sampler_that_the_model_cannot_use_is_found_by_a_dry_run(
    evaluate: Any, model_folder: Path, tmp_path: Path, sampler: str, message: str
) -> None:
    (tmp_path / "s.yaml").write_text(written(model_folder, sampler=sampler, steps=60))
    for options in (["--dry-run"], []):
        status, said, err = evaluate(tmp_path / "s.yaml", "--out", tmp_path / "run", *options)
        assert (status, said, (tmp_path / "run").exists()) == (2, "", False)
        assert message in err
        assert len(err.splitlines()) == 1


def test_a_sweep_takes_samplers_by_other_programs_names(evaluate: Any, model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(written(model_folder, sampler="DPM++ 2M Karras"))
    assert evaluate(tmp_path / "s.yaml", "--out", tmp_path / "run")[0] == 0
    assert "sampler: dpm++2m-karras" in (tmp_path / "run" / "sweep.yaml").read_text()
    cells = expand(RunFolder(str(tmp_path / "run")).sweep())
    assert {cell.sampler for cell in cells} == {"dpm++2m-karras"}


def test_an_error_keeps_its_cause_and_is_one_line_on_the_terminal(
    command: Any, evaluate: Any, model_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "s.yaml").write_text(written(model_folder, prompts=["a"], stack="cfg(2)", axes=None))
    out = tmp_path / "run"
    assert evaluate(tmp_path / "s.yaml", "--out", out)[0] == 0
    (out / "records.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(InputError, match=r"records.parquet of .* is damaged") as caught:
        RunFolder(out).records()
    assert isinstance(caught.value.__cause__, pa.ArrowException | OSError | ValueError)
    status, said, err = command("report", out)
    assert (status, said, len(err.strip().splitlines())) == (2, "", 1)
    assert "Traceback" not in err
