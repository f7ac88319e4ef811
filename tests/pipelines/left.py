"""What a guided call may not change: the state of a pipeline, to compare before and after."""

from __future__ import annotations

from typing import Any

import torch


def state(pipe: Any) -> dict[str, Any]:
    """Components, types, methods, hooks, attributes, configuration and settings of a pipeline."""
    parts = pipe.components
    modules = {name: part for name, part in parts.items() if isinstance(part, torch.nn.Module)}
    return {
        "components": {name: id(part) for name, part in parts.items()},
        "types": {name: type(part) for name, part in parts.items()},
        "submodules": {name: [type(one) for one in part.modules()] for name, part in modules.items()},
        # Offload puts a new one there at the end of each call of the pipeline, which tells no more than what it is.
        "forwards": {name: getattr(part.forward, "__func__", type(part.forward)) for name, part in modules.items()},
        "hooks": {
            name: sum(len(one._forward_hooks) + len(one._forward_pre_hooks) for one in part.modules())
            for name, part in modules.items()
        },
        "attributes": {name: set(vars(part)) for name, part in modules.items() | {("scheduler", pipe.scheduler)}},
        "methods": (pipe.scheduler.step.__func__, type(pipe.scheduler)),
        "config": dict(pipe.config),
        # Where it stands is the pipeline's own note, and stays where a call ends early.
        "set": {
            name: value
            for name, value in vars(pipe).items()
            if name != "_current_timestep" and isinstance(value, bool | int | float | str | None)
        },
    }


def weights(pipe: Any) -> dict[str, int]:
    """Where each weight and buffer of a pipeline is in memory; one entry for each name."""
    return {
        f"{name}.{key}": value.data_ptr()
        for name, part in pipe.components.items()
        if isinstance(part, torch.nn.Module)
        for key, value in part.state_dict(keep_vars=True).items()
    }
