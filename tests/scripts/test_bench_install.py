"""The benchmark of what is around the network: both sides do the same work, and what is counted is counted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import guidestack as gs
from guidestack.pipelines import GuidedPipeline
from guidestack.scripts.bench import cli as bench
from guidestack.scripts.bench import install
from guidestack.scripts.bench.timing import Spread

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


def test_hooks_are_timed_and_taken_off(pipe: Any) -> None:
    cls, step = type(pipe.unet), pipe.scheduler.step.__func__
    cost = install.hooks(pipe, 3)
    assert 0 < cost.low <= cost.median <= cost.high
    assert type(pipe.unet) is cls
    assert pipe.scheduler.step.__func__ is step


def test_what_a_call_leaves_behind_is_counted(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    left = install.growth(pipe, calls=3)
    assert (left.tensors, left.size) == (0, 0)
    kept = []
    original = GuidedPipeline.__call__

    def leak(self: Any, *args: Any, **kwargs: Any) -> Any:
        kept.append(torch.zeros(10))
        return original(self, *args, **kwargs)

    monkeypatch.setattr(GuidedPipeline, "__call__", leak)
    left = install.growth(pipe, calls=3)
    assert (left.tensors, left.size) == (3, 120)


def test_both_sides_make_the_same_images(new_pipe: Callable[..., Any]) -> None:
    from diffusers import ClassifierFreeGuidance

    large = install.enlarged(new_pipe())
    run = install.modular(large, ClassifierFreeGuidance(guidance_scale=install.SCALE))
    rows: list[int] = []
    handle = large.unet.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))

    def given() -> dict[str, Any]:
        generator = [torch.Generator().manual_seed(sample) for sample in range(2)]
        return {"prompt": ["a cat", "red"], "num_inference_steps": 2, "generator": generator, "output_type": "latent",
                "height": 16, "width": 16}  # fmt: skip

    theirs = run(**given(), output="images")
    ours = gs.guide(large, install.CFG.stack)(**given()).images
    handle.remove()
    assert rows == [2, 2, 2, 2, 4, 4]
    assert (theirs - ours).abs().max() < 1e-4 * ours.abs().max()


def test_the_command_prints_all_of_it(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "bundled", lambda: pipe)
    monkeypatch.setattr(install, "CALLS", 1)
    monkeypatch.setattr(install, "over_modular", lambda *given: {"CFG": Spread(0.5, 0.6, 0.7)})
    monkeypatch.setattr(install, "growth", lambda pipe: install.Growth(1, 2, 3))
    result = CliRunner().invoke(bench.command, ["install", "--repeats", "3"])
    assert result.exit_code == 0, result.output
    assert "hooks on and off: 0." in result.output
    assert "CFG of 20 steps over the stock pipeline, batch 1: " in result.output
    assert "+1 tensors, +2 bytes in tensors, +3 KiB" in result.output
    assert "0.600 (0.500 to 0.700), median of 3" in result.output
