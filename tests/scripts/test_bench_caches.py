"""The benchmark of Adaptive Guidance with a feature cache: what is left out is counted, alone and together."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from guidestack.scripts.bench import caches, cli

SMALL = {"num_layers": 1, "num_single_layers": 2, "num_attention_heads": 1, "attention_head_dim": 16,
         "axes_dims_rope": (4, 6, 6)}  # fmt: skip


def test_what_each_leaves_out_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caches, "STEPS", 6)
    bench = caches.Bench(caches.flux(**SMALL), batch=2, size=64, threshold=1e9)
    found = {name: account for name, (_, account) in caches.accounts(bench).items()}
    cfg, cache, adaptive, both = found.values()
    assert list(found)[1] == f"CFG, {caches.CACHE}"
    assert [cfg.rows, cfg.cached] == [24, 0]
    assert [cache.rows, cache.cached] == [24, 20]  # all but the first step
    assert adaptive.cached == 0
    assert adaptive.rows < 24
    assert both.rows < 24
    assert 0 < both.rows - both.cached < min(adaptive.rows, cache.rows)
    assert not bench.pipe.transformer.is_cache_enabled


def test_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    flux = caches.flux
    monkeypatch.setattr(caches, "STEPS", 3)
    monkeypatch.setattr(caches, "flux", lambda: flux(**SMALL))
    result = CliRunner().invoke(cli.command, ["caches", "--repeats", "1"])
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert [line[:36].rstrip() for line in lines[-5:-1]] == [
        "CFG",
        f"CFG, {caches.CACHE}",
        "Adaptive Guidance",
        f"Adaptive Guidance, {caches.CACHE}",
    ]
    assert lines[-1].startswith("the two alone, multiplied: ")
