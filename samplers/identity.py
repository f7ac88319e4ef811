"""Short digests of schedulers and models, which show that a fitted rule runs on what it was not fitted for."""

from __future__ import annotations

import hashlib
import inspect
import json
import math
from typing import Any

import torch
from torch import Tensor

from ..guidance.errors import InputError
from .grid import Grid

FIRST = 16  # values of each parameter that are looked at


def scheduler_identity(scheduler: Any, schedule: Grid) -> dict[str, str]:
    """Return digests that identify a scheduler's configuration and the noise levels of a run.

    Args:
        scheduler: a diffusers scheduler.
        schedule: its grid.

    Returns:
        ``"scheduler"``: the class and a digest of its configuration; ``"levels"``: a digest of the noise levels.

    Only the entries of the configuration that the class itself takes are read, without those that are None or False:
    entries left over from another scheduler have no effect, and a new version's new option that is off changes nothing.
    Levels are rounded to about 5 %, as they differ in their last digits between machines.
    """
    takes = inspect.signature(type(scheduler).__init__).parameters
    given = {name: value for name, value in scheduler.config.items() if name in takes}
    on = {name: value for name, value in given.items() if value is not None and value is not False}
    levels = [_coarse(point.level.k_sigma) for point in schedule.points]
    return {
        "scheduler": f"{type(scheduler).__name__}:{_digest(json.dumps(on, sort_keys=True, default=str))}",
        "levels": f"{len(levels)}:{_digest(json.dumps(levels))}",
    }


def _coarse(k_sigma: float) -> float:
    return round(16 * math.log2(k_sigma)) if 0 < k_sigma < math.inf else k_sigma


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


def weights_digest(model: torch.nn.Module) -> str:
    """Return the class of a model with a digest of the names, shapes and first values of its parameters.

    The same weights in float32 and in float16 have the same digest. Another checkpoint, an added LoRA and weights that
    were rounded to bfloat16 have others.

    Args:
        model: the network, on any device.

    Raises:
        InputError: weights are not in memory.

    Cost: one transfer from each device that holds weights.
    """
    model = getattr(model, "_orig_mod", model)  # what torch.compile wraps
    digest = hashlib.blake2b(digest_size=8)
    first: dict[torch.device, list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            raise InputError(
                f"the weights of {type(model).__name__} are not in memory and cannot be identified; "
                "switch sequential offload off"
            )
        digest.update(f"{name} {tuple(parameter.shape)}\n".encode())
        first.setdefault(parameter.device, []).append(parameter.detach().reshape(-1)[:FIRST].to(torch.float16))
    for values in first.values():
        digest.update(torch.cat(values).cpu().numpy().tobytes())
    return f"{type(model).__name__}:{digest.hexdigest()}"
