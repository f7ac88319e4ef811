"""The benchmark of token merging: it merges what it says, and prints a row for each ratio and size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from guidestack.scripts.bench import cli, merging


def test_a_pass_merges(pipe: Any) -> None:
    one, lengths = merging.Pass(pipe.unet, 8), []
    attention = next(module for name, module in pipe.unet.named_modules() if name.endswith("attn1"))
    handle = attention.to_q.register_forward_pre_hook(lambda module, args: lengths.append(args[0].shape[1]))
    one.plain()
    one.merged(0.5)()
    handle.remove()
    assert lengths == [16, 8]
    assert one.blocks == "down.1,mid,up.0"


def test_the_command(pipe: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(merging, "SIZES", (8,))
    monkeypatch.setattr(merging, "RATIOS", (0.5,))
    monkeypatch.setattr(cli, "_named", lambda *given: type("Model", (), {"make": staticmethod(lambda: pipe)}))
    file = tmp_path / "rows.json"
    result = CliRunner().invoke(cli.command, ["--merging", "--repeats", "1", "--json", str(file)])
    assert result.exit_code == 0, result.output
    (row,) = json.loads(file.read_text())
    assert (row["size"], row["ratio"]) == (8, 0.5)
    assert f"{row['time_ratio']:.3f}" in result.output.splitlines()[-1]
    assert torch.get_num_threads() == 1
