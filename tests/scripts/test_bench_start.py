"""The benchmark of starting: where a process is stopped, and what is said of one that is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from guidestack.scripts.bench import start
from guidestack.scripts.bench.timing import Spread

LAYER = (
    "import torch\nclass {name}(torch.nn.Module):\n    def forward(self):\n        open('called', 'w')\n{name}()()\n"
)


def test_a_process_ends_before_the_denoiser_runs(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(LAYER.format(name="UNet2DConditionModel"))
    start.process(start.RUNNER, str(script), folder=str(tmp_path))
    assert not (tmp_path / "called").exists()


def test_a_process_that_does_not_call_it_is_an_error(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(LAYER.format(name="Other") + "raise ValueError('no weights')")
    with pytest.raises(RuntimeError, match=r"ended with 3: ValueError\('no weights'\)\nthe denoiser was not called"):
        start.process(start.RUNNER, str(script), folder=str(tmp_path))
    assert (tmp_path / "called").exists()


def test_what_is_above_its_limit_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(start, "imports", lambda repeats: Spread(1.0, 1.1, 1.3))
    monkeypatch.setattr(start, "first_steps", lambda model, repeats: Spread(1.4, 1.6, 1.7))
    start.report(Path("model"), 5)
    imports, steps = capsys.readouterr().out.splitlines()
    assert imports.endswith("1.100 (1.000 to 1.300), median of 5 <= 1.2")
    assert steps.endswith("1.600 (1.400 to 1.700), median of 5 <= 1.5  exceeded")
