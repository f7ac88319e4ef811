"""``guidestack doctor``: the page it prints, its exit status, what it refuses."""

from __future__ import annotations

import functools
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from guidestack.pipelines.families.record import FAMILIES
from guidestack.scripts import cli

from ..conftest import make_dit, make_unconditional

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(command: Any) -> Run:
    """``run(*arguments) -> (exit status, stdout, stderr)`` of ``guidestack doctor``, in this process."""
    return functools.partial(command, "doctor")


def test_a_model_folder(run: Run, model_folder: Path) -> None:
    status, out, err = run(model_folder)
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "StableDiffusionPipeline: samples of 2 x 4 x 8 x 8, 2 steps of DDIMScheduler, float32 on cpu"
    assert "pass      cfg          cfg(3) is its own guidance, guidance_scale=3, to the bit" in lines
    assert [line.split() for line in lines if line.startswith("perpneg(3)")] == [["perpneg(3)", "3"]]
    assert lines[-1] == "17 of 17 checks hold"


def test_the_bundled_model_in_half_precision_without_the_table(run: Run) -> None:
    status, out, err = run("--no-rules", "--dtype", "bfloat16")
    assert (status, err) == (0, "")
    assert "bfloat16 on cpu" in out.splitlines()[0]
    assert "perpneg" not in out
    assert "to the bit" in out
    # What rounding hides is said, not passed over.
    assert ("not made" in out) == ("not told from rounding" in out)


def test_another_pipeline_of_the_same_components(run: Run, model_folder: Path) -> None:
    status, out, _ = run(model_folder, "--no-rules", "--pipeline", "StableDiffusionImg2ImgPipeline")
    assert status == 0
    assert out.startswith("StableDiffusionImg2ImgPipeline: samples of 2 x 4 x 8 x 8, 2 steps")
    status, _, err = run(model_folder, "--no-rules", "--pipeline", "StableDiffusionImgPipeline")
    assert status == 2
    assert "--pipeline 'StableDiffusionImgPipeline' is no pipeline of diffusers; did you mean" in err
    status, _, err = run(model_folder, "--no-rules", "--pipeline", "StableDiffusionControlNetPipeline")
    assert status == 2
    assert "controlnet" in err
    assert len(err.splitlines()) == 1


def test_a_failed_check_is_named_and_the_status_is_1(
    run: Run, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = FAMILIES["StableDiffusionPipeline"]
    monkeypatch.setitem(FAMILIES, right.pipeline, replace(right, halves=("positive", "negative")))
    status, out, err = run(model_folder, "--no-rules")
    assert (status, err) == (1, "")
    assert out.splitlines()[-1] == "13 of 16 checks hold; failed: halves, cfg, prompts"


@pytest.mark.parametrize("make", [make_dit, make_unconditional])
def test_models_without_prompts(run: Run, tmp_path: Path, make: Callable[[], Any]) -> None:
    make().save_pretrained(tmp_path)
    status, out, err = run(tmp_path)
    assert (status, err) == (0, "")
    assert "not made  " in out
    found = [line.split() for line in out.splitlines() if line.startswith("tsg(3")]
    assert found == [["tsg(3,", "strength=0.8)", "2"]]


def test_a_model_without_a_record(run: Run, model_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(model_folder, tmp_path / "model")
    index = folder / "model_index.json"
    parts = json.loads(index.read_text())
    for name, nearest in (
        ("StableDiffusionPanoramaPipeline", "StableDiffusionPipeline, by its package"),
        ("OurOwnPipeline", "StableDiffusionPipeline, by its package"),
    ):
        index.write_text(json.dumps({**parts, "_class_name": name}))
        status, out, err = run(folder)
        assert (status, err) == (1, "")
        assert f"there is none for {name}; the nearest is that of" in out
        assert nearest in out
        assert "docs/families.md" in out
        assert out.splitlines()[-1].startswith("0 of 17 checks hold; failed: record; not made: components")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["/no/such/folder"], "no model at '/no/such/folder'"),
        (["--device", "abacus"], "device 'abacus' cannot be used"),
        (["--dtype", "int8"], "'int8' is not one of"),
        (["--ruels"], "No such option"),
    ],
)
def test_what_is_refused(run: Run, arguments: list[str], message: str) -> None:
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) == 1


def test_a_name_that_is_no_folder_here(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out" / "empty").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for name, reason in (
        ("out/nope", "there is no such folder here"),
        ("elsewhere/nope", "there is no such folder here, the hub cannot be reached, and it was not downloaded before"),
        ("out/no pe", "there is no such folder here, and it is no id of a model on the hub"),
        ("out/nope/x", "there is no such folder here"),
        ("out/empty", "it has no model_index.json"),
    ):
        status, out, err = run(name)
        assert (status, out) == (2, "")
        assert reason in err
        assert len(err.splitlines()) == 1
        assert "local_files_only" not in err
        assert "stacktrace" not in err


def test_other_commands_name_the_doctor(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(model_folder, tmp_path / "model")
    index = folder / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "_class_name": "LatentConsistencyModelPipeline"}))
    monkeypatch.setattr(
        sys, "argv", ["guidestack", "generate", "a", "--model", str(folder), "--out", str(tmp_path / "o")]
    )
    with pytest.raises(SystemExit):
        cli.main()
    err = capfd.readouterr().err
    assert "for which there is no family record; StableDiffusionPipeline and StableDiffusion" in err
    assert f"`guidestack doctor {folder}` says how to enter a copy with register_family" in err
    assert len(err.splitlines()) == 1
    assert len(err) < 400 + 2 * len(str(folder))


def test_a_folder_that_is_no_model(run: Run, tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text("[" * 100_000)
    status, _, err = run(tmp_path)
    assert status == 2
    assert "is no model index: expected JSON with '_class_name'" in err
