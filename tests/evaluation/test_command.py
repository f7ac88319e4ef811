"""``guidestack evaluate`` as a user meets it."""

from __future__ import annotations

import functools
import re
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


def test_a_pilot_says_how_many_prompts_rows_need_and_grows_into_the_run(
    evaluate: Any, model_folder: Path, tmp_path: Path
) -> None:
    expect = [
        {"metric": metric, "of": {"w": 3}, "be": "lower", "than": {"w": 1}, "matters": matters}
        for metric, matters in (("evaluations", 1), ("saturation", 1e-3))
    ]
    claim = {"words": "More guidance costs more.", "paper": "2207.12598", "expect": expect}
    (tmp_path / "s.yaml").write_text(
        written(model_folder, stack="cfg({w})", axes={"w": [1, 3]}, prompts=list("abcdef"), claim=claim)
    )
    out = tmp_path / "run"
    status, said, err = evaluate(tmp_path / "s.yaml", "--out", out, "--first", "4")
    assert (status, "8 images made" in said) == (0, True), err
    status, said, err = evaluate(tmp_path / "s.yaml", "--out", out, "--plan")
    assert status == 0, err
    lines = said.splitlines()
    assert re.match(r"from 4 prompts, for a power of 80% at 95%; \S+ s a prompt in all cells:", lines[0])
    assert lines[1].endswith("matters from 1, deviation of a prompt 0: 1 prompt")
    found = re.search(r"deviation of a prompt (\S+): (\d+) prompts?$", lines[2])
    assert found is not None
    assert int(found[2]) == pytest.approx((2.8016 * float(found[1]) / 1e-3) ** 2, rel=0.02, abs=1)
    assert re.match(rf"all rows: {found[2]} prompts?, \S+ h; the sweep has 6, ", lines[3])
    status, said, err = evaluate(tmp_path / "s.yaml", "--out", out)
    assert (status, "4 images made, 8 were there already" in said) == (0, True), err
    assert "--out RUN" in evaluate(tmp_path / "s.yaml", "--plan")[2]
    (tmp_path / "s.yaml").write_text(written(model_folder))
    assert "has no claim" in evaluate(tmp_path / "s.yaml", "--out", out, "--plan")[2]
