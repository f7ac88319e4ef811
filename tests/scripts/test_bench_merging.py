"""The benchmark of token merging: it merges what it says, and prints a row for each ratio and size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import guidestack as gs
from guidestack.scripts.bench import cli, merging, page


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
    result = CliRunner().invoke(cli.command, ["merging", "--repeats", "1", "--json", str(file)])
    assert result.exit_code == 0, result.output
    (row,) = json.loads(file.read_text())
    assert row["what"].endswith("latents of 8x8, over the plain pass")
    assert row["name"] == "ratio 0.5"
    assert f"{row['ratio']['median']:.3f}" in result.output.splitlines()[-1]
    shown = CliRunner().invoke(cli.command, ["--from", str(file), "--page", str(tmp_path / "page.md")])
    assert shown.exit_code == 0, shown.output
    written = (tmp_path / "page.md").read_text()
    assert "## Token merging" in written
    median, seconds = row["ratio"]["median"], row["seconds"]["median"]
    assert f"| ratio 0.5 | `tome(cfg(4), 0.5)` | {1000 * seconds:.2f} ms | {median:.3f} (" in written
    file.write_text(json.dumps([row | {"ratio": {"low": 1}}]))
    with pytest.raises(gs.GuidestackError, match="is not a file of the bench"):
        page.read(file)
