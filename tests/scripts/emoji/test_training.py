from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from guidestack.evaluation.emoji.vocabulary import BACKGROUNDS
from guidestack.scripts.dev.emoji.denoiser import DETAILS, drawn_timesteps, make_loss, new_scheduler
from guidestack.scripts.dev.emoji.harvested import Drawing
from guidestack.scripts.dev.emoji.training import Trainer, generators, rate

STEPS, DECAY_FROM, WARMUP = 24, 12, 4


class Killed(BaseException):
    """Stands for a SIGKILL: nothing after the last save survives."""


def build(path: Path) -> tuple[nn.Module, Trainer]:
    """The same fresh network whenever it is called, with what `path` holds."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 8), nn.SiLU(), nn.Linear(8, 1))
    return net, Trainer({"net": net}, path, 1e-2)


def train(path: Path, steps: int = STEPS, stop_at: int | None = None, signal_number: int | None = None) -> bool:
    """Train to `steps`; at `stop_at`, send the signal to this process."""
    net, trainer = build(path)

    def loss_at(step: int) -> Tensor:
        generator, _ = generators(1, step)
        x = torch.randn(5, 3, generator=generator)
        if step == stop_at and signal_number is not None:
            os.kill(os.getpid(), signal_number)
        return (net(x) - x.sum(1, keepdim=True)).square().mean()

    return trainer.train(loss_at, steps, DECAY_FROM, WARMUP)


def test_the_rate_rises_stays_and_falls_to_zero() -> None:
    shares = [rate(step, 10, 50, 100) for step in range(101)]
    assert shares[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert shares[10:51] == [1.0] * 41
    assert shares[75] == pytest.approx(0.5)
    assert shares[100] == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_run_makes_the_very_same_weights(tmp_path: Path, number: int) -> None:
    assert train(tmp_path / "whole.safetensors")
    assert not train(tmp_path / "parts.safetensors", stop_at=9, signal_number=number)
    assert build(tmp_path / "parts.safetensors")[1].step == 10
    assert train(tmp_path / "parts.safetensors")
    whole, parts = (build(tmp_path / f"{name}.safetensors")[1] for name in ("whole", "parts"))
    for key, parameter in whole.parameters.items():
        assert torch.equal(parameter, parts.parameters[key])
        assert torch.equal(whole.average[key], parts.average[key])
        for moment in ("exp_avg", "exp_avg_sq"):
            state = parts.optimizer.state[parts.parameters[key]]
            assert torch.equal(whole.optimizer.state[parameter][moment], state[moment])


def test_a_kill_in_the_middle_of_a_save_leaves_the_checkpoint_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state.safetensors"
    assert train(path, steps=6)
    before = path.read_bytes()

    def half_written(tensors: object, to: Path, metadata: object) -> None:
        to.write_bytes(b"half")
        raise Killed

    monkeypatch.setattr("guidestack.scripts.dev.emoji.training.save_file", half_written)
    with pytest.raises(Killed):
        train(path, steps=12)
    assert path.read_bytes() == before


def test_training_learns_and_logs(tmp_path: Path) -> None:
    assert train(tmp_path / "state.safetensors", steps=100)
    rows = [json.loads(line) for line in (tmp_path / "state.log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [50, 100]
    assert rows[1]["loss"] < rows[0]["loss"]


def test_the_average_of_a_module_has_its_names(tmp_path: Path) -> None:
    net, trainer = build(tmp_path / "state.safetensors")
    assert set(trainer.averaged("net")) == set(net.state_dict())


def test_a_share_of_each_batch_is_at_the_levels_of_details() -> None:
    alphas = new_scheduler().alphas_cumprod
    generator, _ = generators(1, 2)
    timesteps = drawn_timesteps(alphas, 16, 0.625, generator)
    ratio = ((1 - alphas) / alphas).sqrt()[timesteps]
    assert ratio[:10].min() >= DETAILS[0]
    assert ratio[:10].max() < DETAILS[1]
    assert ratio[10:].max() > 10  # the others are from all levels
    # Without a focus the levels are those that the shipped weights were trained on.
    spread = (torch.arange(16) + torch.rand(16, generator=generators(1, 2)[0])) / 16
    assert torch.equal(drawn_timesteps(alphas, 16, 0.0, generators(1, 2)[0]), (spread * 1000).long())


@pytest.mark.parametrize("flow", [False, True])
def test_the_loss_of_the_right_velocity_is_zero(flow: bool) -> None:
    """Of data that are 0.5 everywhere; the flow twin is told 1000 times its sigma."""
    alphas, told = new_scheduler().alphas_cumprod, []

    def right(x: Tensor, timestep: Tensor, text: Tensor) -> Any:
        told.append(timestep)
        times = timestep.reshape(-1, 1, 1, 1)
        if flow:
            return SimpleNamespace(sample=(x - 0.5) * (1000 / times))
        alpha, sigma = alphas[times].sqrt(), (1 - alphas[times]).sqrt()
        return SimpleNamespace(sample=alpha * (x - alpha * 0.5) / sigma - sigma * 0.5)

    def tokenizer(captions: list[str], **options: Any) -> Any:
        return SimpleNamespace(input_ids=torch.zeros(len(captions), 24))

    data = torch.full((len(BACKGROUNDS), 1, 4, 2, 2), 0.5)
    drawings = [Drawing("cat", "cat", ("pet",), "noto")]
    loss_at = make_loss(right, lambda ids: [ids], tokenizer, data, drawings, alphas, 8, flow=flow)
    assert float(loss_at(0)) == pytest.approx(0, abs=1e-6)
    assert told[0].shape == (8,)
    assert torch.equal(told[0], told[0].sort().values)
    assert float(loss_at(0)) == float(loss_at(0))
