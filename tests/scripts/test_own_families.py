"""A pipeline of one's own at the command line: its class and its record in a file of `--rules`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from guidestack.guidance.notation import registry
from guidestack.pipelines.families.record import FAMILIES
from guidestack.pipelines.models.files import read_recipe

FILE = """
from dataclasses import replace

from diffusers import StableDiffusionPipeline

import guidestack as gs
from guidestack.pipelines.families.record import FAMILIES


class PaintingPipeline(StableDiffusionPipeline):
    pass


gs.register_family(replace(FAMILIES["StableDiffusionPipeline"], pipeline="PaintingPipeline"))
"""


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Path]:
    families, others = dict(FAMILIES), set(registry.OTHERS)
    path = tmp_path / "painting.py"
    path.write_text(FILE)
    yield path
    FAMILIES.clear()
    FAMILIES.update(families)
    registry.OTHERS.clear()
    registry.OTHERS.update(others)


def test_a_record_and_its_class(command: Any, file: Path, new_pipe: Any, tmp_path: Path) -> None:
    new_pipe().save_pretrained(tmp_path / "model")
    index = tmp_path / "model" / "model_index.json"
    index.write_text(index.read_text().replace('"StableDiffusionPipeline"', '"PaintingPipeline"'))
    options = ["--model", tmp_path / "model", "--steps", 2, "--sampler", "ddim", "--out", tmp_path / "out"]
    status, _, err = command("generate", "a", *options)
    assert status == 2
    assert "holds a PaintingPipeline, for which there is no family record" in err
    for _ in range(2):  # the second time the file has been imported
        status, _, err = command("generate", "a", *options, "--rules", file)
        assert status == 0, err
    (path,) = (tmp_path / "out").glob("*.png")
    assert read_recipe(path)["prompt"] == "a"
    status, out, err = command("doctor", tmp_path / "model", "--no-rules", "--rules", file)
    assert status == 0, err
    assert out.startswith("PaintingPipeline: samples of")


def test_a_file_that_registers_nothing(command: Any, tmp_path: Path) -> None:
    (tmp_path / "none.py").write_text("import guidestack\n")
    status, _, err = command("rules", "--rules", tmp_path / "none.py")
    assert (status, "registers no rule" in err) == (2, True)
