"""``guidestack generate`` takes the stack that is stored beside a model."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import guidestack as gs
from guidestack.guidance.errors import StackSyntaxError
from guidestack.pipelines.models.files import read_recipe
from guidestack.scripts.generate import command


@pytest.fixture
def folder(model_folder: Path, tmp_path: Path) -> Path:
    """A tiny model with a stack beside it."""
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    gs.save_pretrained(gs.CFG(3) | gs.Rescale(0.5), folder)
    return folder


def generate(folder: Path, out: Path, *more: str) -> tuple[Any, str]:
    """The result, and the guidance that the one image was made with."""
    options = ["a cat", "--model", str(folder), "--out", str(out), "--steps", "2", "--sampler", "ddim", *more]
    result = CliRunner().invoke(command, options, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    (path,) = out.glob("*.png")
    return result, read_recipe(path)["guidance"]


def test_by_default_and_says_so(folder: Path, model_folder: Path, tmp_path: Path) -> None:
    result, guidance = generate(folder, tmp_path / "stored")
    assert guidance == "cfg(3) | rescale(0.5)"
    assert "guidance of the model's folder: cfg(3) | rescale(0.5)" in result.stderr
    result, guidance = generate(folder, tmp_path / "named", "--guidance", "apg(2)")
    assert guidance == "apg(2)"
    assert "guidance of the model's folder" not in result.stderr
    result, guidance = generate(model_folder, tmp_path / "none")
    assert guidance == "cfg(4)"
    assert "guidance of the model's folder" not in result.stderr


def test_an_image_is_made_again_with_what_made_it(folder: Path, tmp_path: Path) -> None:
    generate(folder, tmp_path / "first")
    (path,) = (tmp_path / "first").glob("*.png")
    gs.save_pretrained("apg(7)", folder)
    options = ["--like", str(path), "--model", str(folder), "--out", str(tmp_path / "again")]
    result = CliRunner().invoke(command, options, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert read_recipe(tmp_path / "again" / path.name)["guidance"] == "cfg(3) | rescale(0.5)"


def test_a_bad_file_is_said_before_the_model_is_loaded(folder: Path, tmp_path: Path) -> None:
    (folder / "guidance.yaml").write_text("rules:\n- cgf: {scale: 3}\n")
    shutil.rmtree(folder / "unet")
    with pytest.raises(StackSyntaxError, match="unknown rule 'cgf'; did you mean"):
        generate(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
