"""A second run of `generate` with nothing to make answers without torch, and only where it may."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from guidestack.scripts import answered
from guidestack.scripts.wanted import Wanted


@pytest.fixture
def made(command: Any, model_folder: Path, tmp_path: Path) -> list[object]:
    """The command line of two images that were made."""
    (tmp_path / "prompts.txt").write_text("a cat\nred\n")
    (tmp_path / "own.yaml").write_text("rules:\n- cfg: {scale: 3}\n")
    line: list[object] = [
        "generate",
        "--prompts-from",
        tmp_path / "prompts.txt",
        "--guidance",
        f"@{tmp_path / 'own.yaml'}",
    ]
    line += ["--model", model_folder, "--steps", 2, "--sampler", "ddim", "--out", tmp_path / "out"]
    status, out, err = command(*line)
    assert (status, "2 images" in out) == (0, True), err
    return line


def test_without_torch(made: list[object], tmp_path: Path) -> None:
    code = "import sys; sys.modules['torch'] = None; sys.argv = ['guidestack', *sys.argv[1:]]\n"
    code += "from guidestack.scripts.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code, *map(str, made)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"nothing to make in {tmp_path / 'out'}: 2 were there already\n"


def test_whatever_decides_an_image_takes_the_long_way(
    command: Any, made: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr("guidestack.scripts.generating.generate", lambda wanted: asked.append(1) or ("", []))

    def long(*more: object) -> bool:
        asked.clear()
        status, _, err = command(*made, *more)
        assert status == 0, err
        return bool(asked)

    assert not long()
    assert not long("--batch", 2)
    (tmp_path / "own.py").write_text(
        "from guidestack.guidance.notation import registry\nregistry.OTHERS.add(__name__)\n"
    )
    for more in (
        ["--seed", 1], ["--steps", 3], ["--guidance", "cfg(2)"], ["--overwrite"], ["--grid", tmp_path / "g.png"],
        ["--axis", "seed=1,2"], ["--device", "cpu"], ["more"], ["--rules", tmp_path / "own.py"],
    ):  # fmt: skip
        assert long(*more), more
    (tmp_path / "own.yaml").write_text("rules:\n- cfg: {scale: 4}\n")
    assert long()


def test_a_prompt_names_no_folder(command: Any, made: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []
    monkeypatch.setattr("guidestack.scripts.generating.generate", lambda wanted: ("", []))
    monkeypatch.setattr(answered, "_stamp", lambda path: iter([looked.append(str(path))]))
    assert command(*made, "/usr", "--negative", "/usr")[0] == 0
    assert str(made[2]) in looked  # the file of prompts
    assert "/usr" not in looked


def test_a_missing_image_and_files_of_others(command: Any, made: list[object], tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = sorted(out.glob("*.png"))[0]
    first.unlink()
    assert "1 image in" in command(*made)[1]
    good = (out / answered.FILE).read_text()
    (key,) = json.loads(good)
    for bad in ("", "[]", "{", json.dumps({key: ["../x.png"]}), json.dumps({key: [1]}), json.dumps({key: []})):
        (out / answered.FILE).write_text(bad)
        assert "2 were there already" in command(*made)[1]
        assert json.loads((out / answered.FILE).read_text()) == json.loads(good), bad


def test_what_is_warned_of_is_warned_of_again(command: Any, model_folder: Path, tmp_path: Path) -> None:
    line = ["generate", "a", "--negative", "b | c", "--model", model_folder, "--steps", 2, "--sampler", "ddim"]
    for _ in range(2):
        assert "takes one negative prompt" in command(*line, "--out", tmp_path)[2]


FILES = [field.name for field in dataclasses.fields(Wanted) if "Path" in field.type or "Mapping" in field.type]
"""The options that name files, by their types: of those that are texts the list in `answered` has more."""


@pytest.mark.parametrize("name", sorted({*FILES, *answered.NAMING} - {"out", "grid", "like"}))
def test_another_file_of_the_same_name_is_another_question(name: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    blank: dict[str, Any] = {field.name: None for field in dataclasses.fields(Wanted)} | {"given": frozenset()}
    kind = next(field.type for field in dataclasses.fields(Wanted) if field.name == name)
    value = {"known": str(file)} if "Mapping" in kind else (str(file),) if "tuple" in kind else str(file)
    wanted = Wanted(**{**blank, name: value})
    asked = []
    for text in ("one", "another"):
        file.write_text(text)
        asked.append(answered.question(wanted))
    assert len({*asked, None}) == 3
