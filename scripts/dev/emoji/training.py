"""The loop of the training scripts, which can be killed at any moment and continues as if it had not been.

Everything random at a step is derived from (seed, step), so that a checkpoint needs no generator's state, and an
interrupted run makes the very same weights as one that was not.
"""

from __future__ import annotations

import json
import math
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from ....guidance.files import replacing


def rate(step: int, warmup: int, decay_from: int, steps: int) -> float:
    """Share of the learning rate at `step`: linear warm-up, constant, linear to 0 between `decay_from` and `steps`."""
    rising = (step + 1) / warmup if warmup else 1.0
    falling = (steps - step) / max(1, steps - decay_from)
    return max(0.0, min(1.0, rising, falling))


def generators(seed: int, step: int) -> tuple[torch.Generator, random.Random]:
    """The random numbers of one step."""
    key = seed * 1_000_003 + step
    return torch.Generator().manual_seed(key), random.Random(key)


@contextmanager
def interruptible() -> Iterator[list[int]]:
    """A list that stays empty until a SIGINT or SIGTERM, whose number it then holds; the signals do nothing else."""
    got: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        got.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield got
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Trainer:
    """Weights, their moving average and the optimizer, kept in a file.

    Args:
        modules: the networks that are trained, by name.
        path: the checkpoint; read if it is there.
        learning_rate: at its height.
        ema: decay of the moving average at each step; the average starts as a plain mean.
        told: what the checkpoint says of how it was trained, for the model card.
    """

    def __init__(
        self,
        modules: dict[str, nn.Module],
        path: Path,
        learning_rate: float,
        ema: float = 0.9995,
        told: dict[str, float] | None = None,
    ) -> None:
        self.path, self.learning_rate, self.ema_decay, self.told = path, learning_rate, ema, told or {}
        self.parameters: dict[str, nn.Parameter] = {
            f"{name}.{key}": parameter
            for name, module in modules.items()
            for key, parameter in module.named_parameters()
            if parameter.requires_grad
        }
        self.optimizer = torch.optim.AdamW(self.parameters.values(), lr=learning_rate, weight_decay=0.01)
        self.step, self.seconds = 0, 0.0
        if path.exists():
            self._load()
        else:
            self.average = {key: parameter.detach().clone() for key, parameter in self.parameters.items()}

    def _load(self) -> None:
        with safe_open(self.path, "pt") as file:
            about = json.loads(file.metadata()["about"])
            self.step, self.seconds = about["step"], about["seconds"]
            self.told = {**about.get("told", {}), **self.told}
            with torch.no_grad():
                for key, parameter in self.parameters.items():
                    parameter.copy_(file.get_tensor(f"now.{key}"))
            self.average = {key: file.get_tensor(f"average.{key}") for key in self.parameters}
            for key, parameter in self.parameters.items():
                if f"first.{key}" in file.keys():  # noqa: SIM118  # safe_open is no mapping
                    self.optimizer.state[parameter] = {
                        "step": torch.tensor(float(about["updates"])),
                        "exp_avg": file.get_tensor(f"first.{key}"),
                        "exp_avg_sq": file.get_tensor(f"second.{key}"),
                    }

    def save(self) -> None:
        """Write the checkpoint beside and rename it."""
        tensors: dict[str, Tensor] = {}
        updates = 0.0
        for key, parameter in self.parameters.items():
            tensors[f"now.{key}"] = parameter.detach()
            tensors[f"average.{key}"] = self.average[key]
            if state := self.optimizer.state.get(parameter):
                tensors[f"first.{key}"], tensors[f"second.{key}"] = state["exp_avg"], state["exp_avg_sq"]
                updates = float(state["step"])
        about = json.dumps({"step": self.step, "seconds": self.seconds, "updates": updates, "told": self.told})
        with replacing(self.path) as path:
            save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path, {"about": about})

    def update(self, loss: Tensor, share: float) -> float:
        """One optimizer step at `share` of the learning rate; returns the gradient's norm."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = float(nn.utils.clip_grad_norm_(self.parameters.values(), 1.0))
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * share
        if math.isfinite(norm):
            self.optimizer.step()
        self.step += 1
        decay = min(self.ema_decay, 1 - 1 / (self.step + 1))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.values()), list(self.parameters.values()), 1 - decay)
        return norm

    def averaged(self, name: str) -> dict[str, Tensor]:
        """The moving average of the parameters of one module."""
        start = f"{name}."
        return {key.removeprefix(start): value for key, value in self.average.items() if key.startswith(start)}

    def train(
        self,
        loss_at: Callable[[int], Tensor],
        steps: int,
        decay_from: int,
        warmup: int,
        save_every: float = 300.0,
    ) -> bool:
        """Train until `steps`, a SIGINT or a SIGTERM; saves every `save_every` seconds and at the end.

        Args:
            loss_at: the loss of a step, which draws what it needs from ``generators(seed, step)``.
            steps: steps in all, those before a resume included.
            decay_from: the step at which the learning rate begins to fall.
            warmup: steps until the learning rate is at its height.
            save_every: seconds.

        Returns:
            Whether it reached `steps`.
        """
        saved = began = time.monotonic()
        already, running = self.seconds, None
        with (
            interruptible() as stopped,
            self.path.with_suffix(".log.jsonl").open("a") as log,
            tqdm(total=steps, initial=self.step, unit="step", smoothing=0.05, mininterval=5, dynamic_ncols=True) as bar,
        ):
            while self.step < steps and not stopped:
                loss = loss_at(self.step)
                norm = self.update(loss, rate(self.step, warmup, decay_from, steps))
                value = float(loss.detach())
                running = value if running is None else 0.99 * running + 0.01 * value
                bar.set_postfix(loss=f"{running:.4f}", refresh=False)
                bar.update()
                now = time.monotonic()
                self.seconds = already + now - began
                if self.step % 50 == 0:
                    row = {"step": self.step, "loss": running, "norm": norm, "seconds": self.seconds}
                    print(json.dumps(row), file=log, flush=True)
                if now - saved > save_every:
                    self.save()
                    saved = now
            self.save()
        return self.step >= steps
