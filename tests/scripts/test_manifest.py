"""The manifest beside the images of ``guidestack generate``."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from guidestack.guidance.errors import InputError
from guidestack.pipelines.models import files, manifest
from guidestack.pipelines.models.files import read_recipe

QUICK = ["--steps", "2", "--sampler", "ddim"]


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / manifest.NAME).read_text(encoding="utf-8").splitlines() if line]


def images(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("*.png")}


@pytest.fixture
def generate(command: Any, model_folder: Path) -> Any:
    """``generate(folder, *arguments) -> (exit status, stdout, stderr)`` with the tiny model."""

    def call(folder: Path, *arguments: object) -> tuple[int, str, str]:
        return command("generate", *arguments, "--model", model_folder, "--out", folder, *QUICK)  # type: ignore[no-any-return]

    return call


def test_a_line_for_each_image(generate: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ["--guidance", "cfg(3)", "--guidance", "stack()", "--batch", 2, "--negative", "größer"]
    status, said, err = generate(out, "a cat", "red", "sea", *options)
    assert status == 0, err
    told = lines(out)
    assert [list(one) for one in told] == [["file", "recipe", "evaluations", "seconds"]] * 6
    assert {one["file"] for one in told} == images(out)
    assert all(one["recipe"] == read_recipe(out / one["file"]) for one in told)
    assert [one["evaluations"] for one in told] == [4] * 3 + [2] * 3
    assert f"{sum(one['evaluations'] for one in told)} network evaluations" in said
    assert all(one["seconds"] > 0 for one in told)
    assert list(manifest.read(out).values()) == told
    out.rename(tmp_path / "moved")
    assert manifest.read(tmp_path / "moved").keys() == images(tmp_path / "moved")


@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_run_that_is_interrupted_and_goes_on(
    generate: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    original, calls = files.write, []

    def write(*arguments: Any) -> None:
        calls.append(1)
        if len(calls) == at:
            raise KeyboardInterrupt
        original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(files, "write", write)
        assert generate(tmp_path, "a", "b", "c")[0] == 130
    assert len(images(tmp_path)) == at - 1
    assert manifest.read(tmp_path).keys() == images(tmp_path)
    assert generate(tmp_path, "a", "b", "c")[0] == 0
    assert manifest.read(tmp_path).keys() == images(tmp_path)
    assert len(images(tmp_path)) == 3


def test_images_that_are_made_again_or_removed(generate: Any, tmp_path: Path) -> None:
    assert generate(tmp_path, "a", "b", "--batch", 2)[0] == 0
    assert generate(tmp_path, "a", "b")[0] == 0
    assert len(lines(tmp_path)) == 2  # nothing was made
    assert generate(tmp_path, "a", "b", "--overwrite")[0] == 0
    assert len(lines(tmp_path)) == 4
    told = manifest.read(tmp_path)
    assert told.keys() == images(tmp_path)
    assert {one["recipe"]["batch"] for one in told.values()} == {1}
    assert all(one["recipe"] == read_recipe(tmp_path / file) for file, one in told.items())
    gone = min(images(tmp_path))
    (tmp_path / gone).unlink()
    assert manifest.read(tmp_path).keys() == told.keys() - {gone}


def test_a_line_that_was_cut_costs_no_other(generate: Any, tmp_path: Path) -> None:
    assert generate(tmp_path, "a")[0] == 0
    with (tmp_path / manifest.NAME).open("ab") as file:
        file.write(b'{"file": "half')
    assert generate(tmp_path, "b")[0] == 0
    assert manifest.read(tmp_path).keys() == images(tmp_path)
    assert len(images(tmp_path)) == 2


def test_processes_share_a_folder(tmp_path: Path) -> None:
    def add(who: int) -> None:
        for number in range(100):
            manifest.append(tmp_path, f"{who}-{number}.png", {"prompt": "x" * 500}, 2, 0.5)

    threads = [threading.Thread(target=add, args=(who,)) for who in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {one["file"] for one in lines(tmp_path)} == {
        f"{who}-{number}.png" for who in range(4) for number in range(100)
    }


def test_a_manifest_that_cannot_be_used(generate: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read .*manifest.jsonl: No such file"):
        manifest.read(tmp_path)
    (tmp_path / manifest.NAME).mkdir()
    status, _, err = generate(tmp_path, "a")
    assert (status, images(tmp_path)) == (2, set())
    assert "manifest.jsonl: Is a directory; choose another --out" in err.splitlines()[-1]
    with pytest.raises(InputError, match="Is a directory"):
        manifest.read(tmp_path)
