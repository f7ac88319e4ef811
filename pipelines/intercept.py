"""Hooks on a denoiser and a scheduler for the length of one call, and nothing left behind.

Components are never replaced: `pipe.components`, `save_pretrained`, offload, LoRA and compiled modules see the objects
they know. The denoiser's class is exchanged for a subclass whose ``__call__`` is ours: that is outside of
``forward``, so that hooks which others put there (accelerate's offload, a compiled graph) run inside, call after call.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ..guidance.errors import GuidanceNotAppliedError

_in_use: set[int] = set()
_lock = threading.Lock()


@contextmanager
def exclusively(*components: object) -> Iterator[None]:
    """Hold components for one guided call.

    Raises:
        GuidanceNotAppliedError: another guided call, in this thread or another, holds one of them.
    """
    keys = {id(component) for component in components}
    with _lock:
        if keys & _in_use:
            raise GuidanceNotAppliedError(
                "this pipeline, or one that shares its denoiser or scheduler, is in the middle of another guided call; "
                "wait for it, or give each thread a pipeline of its own"
            )
        _in_use.update(keys)
    try:
        yield
    finally:
        with _lock:
            _in_use.difference_update(keys)


def compiled(module: Any) -> bool:
    """Whether calls of `module` itself run a compiled graph: ``torch.compile(module)``, or ``module.compile()``."""
    return type(module).__name__ == "OptimizedModule" or getattr(module, "_compiled_call_impl", None) is not None


@contextmanager
def calling(module: Any, hook: Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]) -> Iterator[None]:
    """While the context lasts, ``module(*args, **kwargs)`` is ``hook(original, args, kwargs)``.

    `original` runs with the module's own class in place: a compiled graph is guarded by it, and would be compiled anew.
    """
    cls = type(module)

    def original(*args: Any, **kwargs: Any) -> Any:
        module.__class__ = cls
        try:
            return module(*args, **kwargs)
        finally:
            module.__class__ = intercepted

    def hooked(self: Any, *args: Any, **kwargs: Any) -> Any:
        return hook(original, args, kwargs)

    names = {"__call__": hooked, "__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    intercepted = type(cls.__name__, (cls,), names)
    module.__class__ = intercepted
    try:
        yield
    finally:
        module.__class__ = cls


@contextmanager
def method(owner: Any, name: str, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    """While the context lasts, ``owner.name`` is ``wrap(owner.name)``, with the signature of the original."""
    original = getattr(owner, name)
    before = vars(owner).get(name)
    setattr(owner, name, functools.wraps(original)(wrap(original)))
    try:
        yield
    finally:
        if before is None:
            delattr(owner, name)
        else:
            setattr(owner, name, before)


@contextmanager
def restored(owner: Any, names: tuple[str, ...]) -> Iterator[None]:
    """Put the attributes `names` of `owner` back as they were, absent ones included."""
    before = {name: vars(owner)[name] for name in names if name in vars(owner)}
    try:
        yield
    finally:
        for name in names:
            if name in before:
                setattr(owner, name, before[name])
            elif name in vars(owner):
                delattr(owner, name)
