"""The benchmark of sweeps: every batch is made by both sides, and the page has both figures."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from guidestack.evaluation.run.runner import Options, Prepared
from guidestack.scripts.bench import cli, page, sweep

from ..evaluation.common import sweep_of

KEYS = {"prompts": ["a", "b", "c", "d"], "stack": "cfg({w})", "axes": {"w": [2]}, "steps": 1, "batch": 1}


def test_every_batch_is_made_by_both(model_folder: Path, tmp_path: Path) -> None:
    beside = sweep.Beside(Prepared(sweep_of(model_folder, **KEYS), Options()), "cpu")
    beside.run(str(tmp_path / "run"))
    assert len(list(tmp_path.glob("run/images/*/*.png"))) == 4
    assert [len(one) for one in (beside.bare, beside.sweep, beside.memory)] == [4, 4, 4]
    assert all(one > 0 for one in (*beside.bare, *beside.sweep, *beside.memory))


def test_the_rows_of_the_page(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "sweep_of", lambda *given: sweep_of(model_folder, **KEYS))
    rows = sweep.speed(32, "cpu")
    assert all(math.isfinite(row.timing.ratio.median) for row in rows)
    text = page.text([row.mapping() | cli.machine() for row in rows])
    assert "## Sweeps" in text
    assert text.count("32 images, batches of 8, cpu time | `cfg(2)` |") == 2
