"""The state of a pipeline, to compare before and after, and to put back."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from ..families.record import Pipeline
from .watch import copied, same

PLAIN = (bool, int, float, str, type(None), tuple, list, dict, torch.Tensor)


def state(pipe: Pipeline, memory: bool = True) -> dict[str, Any]:
    """Everything that a guided call may not change, by name: identity where an object is meant, content otherwise.

    Args:
        pipe: the pipeline.
        memory: with what the scheduler remembers of a run.
    """
    kinds = (*PLAIN, Mapping) if memory else (bool, int, float, str, Mapping)
    parts = _parts(pipe)
    found: dict[str, Any] = {"attributes": sorted(vars(pipe))}
    for name, part in parts.items():
        found[f"{name}: identity"] = id(part)
        found[f"{name}: type"] = type(part)
        if isinstance(part, torch.nn.Module):
            found |= {f"{name}: {what}": value for what, value in _module(part).items()}
    for name, value in vars(pipe).items():
        if isinstance(value, PLAIN) and name not in parts:
            found[f"{name}"] = copied(value)
    for name, value in vars(pipe.scheduler).items():
        # Other objects are made anew in each call: sources of noise.
        found[f"scheduler: {name}"] = copied(value) if isinstance(value, kinds) else type(value)
    # What save_pretrained writes as model_index.json.
    found["model_index.json"] = pipe.to_json_string() if hasattr(pipe, "to_json_string") else None
    return found


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """The names under which two states differ."""
    names = dict.fromkeys([*before, *after])
    return [name for name in names if name not in before or name not in after or not same(before[name], after[name])]


def _parts(pipe: Pipeline) -> dict[str, Any]:
    known = getattr(pipe, "components", None)
    if isinstance(known, dict):
        return dict(known)
    return {name: value for name, value in vars(pipe).items() if not isinstance(value, PLAIN)}


def _module(module: torch.nn.Module) -> dict[str, Any]:
    offloaded = hasattr(module, "_hf_hook")  # accelerate puts other tensors there at every call
    config = getattr(module, "config", None)
    return {
        "submodules": [type(one) for one in module.modules()],
        "forward": vars(module).get("forward", type(module).forward) if not offloaded else None,
        "attributes": sorted(vars(module)),
        "hooks": [
            [len(one._forward_hooks), len(one._forward_pre_hooks), len(one._backward_hooks)] for one in module.modules()
        ],
        "training": module.training,
        "config": json.dumps(dict(config), default=str, sort_keys=True) if isinstance(config, Mapping) else str(config),
        "weights": None if offloaded else [_weight(one) for one in (*module.parameters(), *module.buffers())],
    }


def _weight(value: torch.Tensor) -> tuple[int, int]:
    """Which tensor, and how often it was written to."""
    return id(value), 0 if value.is_inference() else value._version


@contextmanager
def kept(pipe: Pipeline) -> Iterator[None]:
    """Put the pipeline's own notes and its scheduler's back as they were, which its own calls write."""
    scheduler = pipe.scheduler
    notes = [(owner, {name: _shallow(value) for name, value in vars(owner).items()}) for owner in (pipe, scheduler)]
    try:
        yield
    finally:
        for owner, before in notes:
            now = owner.__dict__
            for name in set(now) - set(before):
                del now[name]
            now.update(before)


def _shallow(value: Any) -> Any:
    return copy.copy(value) if type(value) in (list, dict, set) else value
