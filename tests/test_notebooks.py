"""The notebooks of the documentation run, with few steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from guidestack.scripts.dev import notebooks
from guidestack.scripts.dev.notebooks import FOLDER, PARAMETERS, execute

FEW: dict[str, dict[str, Any]] = {
    "first-steps": {"STEPS": 3},
    "compare": {"PROMPTS": 2, "STEPS": 2},
}


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.ipynb")))
def test_it_runs_and_shows_what_its_file_shows(name: str, tmp_path: Path) -> None:
    notebook = json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))
    assert sum(PARAMETERS in cell["metadata"].get("tags", ()) for cell in notebook["cells"]) == 1
    few = {**FEW[name], **({"OUT": str(tmp_path / "run")} if name == "compare" else {})}
    for cell, outputs in execute(notebook, **few):
        kinds = [sorted(one.get("data", {"text": 0})) for one in outputs]
        assert kinds == [sorted(one.get("data", {"text": 0})) for one in cell["outputs"]], "".join(cell["source"])


def test_a_notebook_is_run_in_a_new_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = tmp_path / "out" / "notebook"
    left.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(notebooks, "FOLDER", tmp_path)
    cell = {"cell_type": "code", "metadata": {}, "source": ["import os\n", "os.path.exists('out')"]}
    (tmp_path / "one.ipynb").write_text(json.dumps({"cells": [cell]}), encoding="utf-8")
    notebooks.main()
    (made,) = json.loads((tmp_path / "one.ipynb").read_text(encoding="utf-8"))["cells"]
    assert made["outputs"][0]["data"] == {"text/plain": ["False"]}
    assert Path.cwd() == tmp_path
