"""Patches: functions that somebody put in the place of a module's ``forward``, which may remember earlier calls."""

from __future__ import annotations

import functools
from typing import Any

from torch import nn

HARMLESS = ("accelerate.", "diffusers.hooks.")
"""Whose replacements of `forward` are known: offload, and the hooks that are looked at one by one."""


def replaced(part: nn.Module) -> str:
    """The function that somebody put in the place of a module's ``forward``, or "".

    Offload, diffusers' own hooks and compiled graphs do not count, nor does a function with ``remembers = False``.
    """
    function: Any = vars(part).get("forward", type(part).forward)
    while getattr(function, "remembers", True):
        inner = getattr(function, "_torchdynamo_orig_callable", None)
        if inner is None and str(getattr(getattr(function, "func", None), "__module__", "")).startswith(HARMLESS):
            inner = getattr(function, "__wrapped__", None)
        if inner is None:
            break
        function = inner
    else:
        return ""
    own = getattr(function, "__func__", function)  # put back by who had hidden it
    if own in (type(part).forward, nn.Module.__call__):
        own = type(part).forward
        kind: Any = type(part)
        if not getattr(own, "remembers", True) or own is nn.Module.forward or not _foreign(own, kind):
            return ""
    return getattr(function, "__qualname__", None) or type(function).__name__


@functools.lru_cache(maxsize=1024)  # a network has thousands of parts of some dozens of classes
def _foreign(function: Any, cls: Any) -> bool:
    """Whether a class was given a method from elsewhere."""
    qualname = str(getattr(function, "__qualname__", "")).rpartition(".")[0]
    own = [(one.__module__, one.__qualname__) for one in cls.__mro__]
    module = getattr(function, "__module__", None)
    return module not in [name for name, _ in own] and qualname not in [name for _, name in own]
