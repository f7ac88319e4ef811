"""The benchmarks of edits and of the guider in ComfyUI: they measure what they say."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from guidestack.scripts.bench import cli, edits, page
from guidestack.scripts.bench.merging import Pass
from guidestack.scripts.dev import comfyui


def test_a_pass_is_edited_and_is_one_evaluation(pipe: Any) -> None:
    one, answers = Pass(pipe.unet, 8), []
    handle = pipe.unet.register_forward_hook(lambda module, args, output: answers.append(output.sample))
    one.plain()
    for stack, perturbation in edits.PERTURBATIONS.items():
        edits.perturbed(one, perturbation)()
        assert not torch.equal(answers[0], answers[-1]), stack
    handle.remove()
    assert len(answers) == 1 + len(edits.PERTURBATIONS)


def test_the_command(pipe: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(edits, "SIZE", 8)
    monkeypatch.setattr(cli, "_named", lambda *given: type("Model", (), {"make": staticmethod(lambda: pipe)}))
    file = tmp_path / "rows.json"
    result = CliRunner().invoke(cli.command, ["edits", "--repeats", "1", "--json", str(file)])
    assert result.exit_code == 0, result.output
    rows = json.loads(file.read_text())
    assert [row["stack"] for row in rows] == list(edits.PERTURBATIONS)
    assert {row["limit"] for row in rows} == {1.01}
    assert "## Edits of the network" in page.text(page.read(file))


def test_the_guider_in_comfyui_makes_what_its_own_makes(
    pipe: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] in ("comfy", "comfy_api", "comfyui_fake")]:
        monkeypatch.delitem(sys.modules, name)
    before = set(sys.modules)
    monkeypatch.setitem(comfyui.MODELS, "bundled", (lambda: pipe, 8, 2))
    file = tmp_path / "rows.json"
    try:
        result = CliRunner().invoke(comfyui.main, ["--repeats", "1", "--json", str(file)])
    finally:
        for name in set(sys.modules) - before:
            if name.partition(".")[0] in ("comfy", "comfy_api", "comfyui_fake"):
                del sys.modules[name]
    assert result.exit_code == 0, result.output
    assert [row["stack"] for row in json.loads(file.read_text())] == list(comfyui.STACKS)
    assert "## In ComfyUI" in page.text(page.read(file))
