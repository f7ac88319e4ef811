"""The benchmark of steering: what it compares is what it says, and the command prints a row for each."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from guidestack.scripts.bench import cli, steering

from ..conftest import make_stable_diffusion


def test_the_passes_are_those_of_a_steered_run() -> None:
    bench, seen = steering.Bench(make_stable_diffusion(), 2, 3), list[tuple[int, bool]]()
    bench.pipe.unet.register_forward_hook(
        lambda module, args, output: seen.append((len(output[0]), output[0].requires_grad))
    )
    bench.passes()()
    alone = list(seen)
    seen.clear()
    bench.guided(steering.THROUGH)()
    assert seen == alone == [(2, True)] * 3
    seen.clear()
    bench.guided(steering.CLEAN)()
    assert seen == [(4, False)] * 3


def test_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(steering, "bundled", make_stable_diffusion)
    monkeypatch.setattr(steering, "shaped", make_stable_diffusion)
    file = tmp_path / "rows.json"
    arguments = ["steering", "--batch", "1", "--steps", "1", "--repeats", "1", "--json", str(file)]
    result = CliRunner().invoke(cli.command, [*arguments, "--threads", str(torch.get_num_threads())])
    assert result.exit_code == 0, result.output
    rows = json.loads(file.read_text())
    assert [row["stack"] for row in rows] == [steering.THROUGH, steering.CLEAN]
    assert [row["limit"] for row in rows] == [1.05, 1.15]
    assert "peak memory beyond the weights of tfg('near', rho=1) with enable_gradient_checkpointing()" in result.output
