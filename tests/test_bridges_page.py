"""The examples of docs/bridges.md run, one after the other, as they stand there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import guidestack as gs

from .bridges.modular import pair

TEXT = (Path(__file__).parent.parent / "docs" / "bridges.md").read_text()
BLOCKS = re.findall(r"```python( modular)?\n(.*?)```", TEXT, re.DOTALL)


def run(source: str, names: dict[str, Any]) -> dict[str, Any]:
    exec(compile(source, "docs/bridges.md", "exec"), names)
    return names


def test_there_are_examples_of_both_kinds() -> None:
    assert [bool(modular) for modular, _ in BLOCKS] == [True, True, False, False]


def test_in_a_modular_pipeline(capsys: pytest.CaptureFixture[str]) -> None:
    both = pair("sdxl")
    both.modular.update_components(scheduler=type(both.classic.scheduler).from_config(both.classic.scheduler.config))
    names: dict[str, Any] = {"gs": gs, "pipe": both.modular}
    for modular, source in BLOCKS:
        if modular:
            # A small picture, and a threshold that a random network, whose predictions are all alike, does not reach.
            small = source.replace("num_inference_steps=4", "num_inference_steps=4, height=16, width=16")
            run(small.replace("threshold=0.99", "threshold=2"), names)
            assert names["image"].size == (16, 16)
    assert "evaluations a sample" in capsys.readouterr().out
    assert names["perp_neg"].report.evaluations == [16]  # the prompt, the empty one, two negatives


def test_the_others(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    k_diffusion, stored = (run(source, {}) for modular, source in BLOCKS if not modular)
    assert k_diffusion["samples"].shape == (3, 2)
    assert "3 samples, 4 steps, 11 evaluations a sample" in capsys.readouterr().out
    assert stored["guided"].stack == gs.parse("cfg(4) | rescale(0.5)")
    assert (tmp_path / "model" / "guidance.yaml").is_file()
