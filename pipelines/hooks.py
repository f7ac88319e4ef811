"""Hooks on a denoiser and a scheduler that act on one pipeline call only, and are removed when it ends.

Components are never replaced, and keep their classes: `pipe.components`, `save_pretrained`, offload, LoRA and compiled
graphs see the objects they know. A module's call is taken over where torch itself looks for a compiled one: outside of
``forward``, so that hooks which others put there (accelerate's offload, a compiled graph) run inside, call after call.

The stack of frames shows whose call it is: a module or a scheduler that other code uses meanwhile, in another thread,
in a callback or in a hook, works as without guidance. Copies and pickles made meanwhile have no hooks.
"""

from __future__ import annotations

import functools
import inspect
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

from ..guidance.errors import GuidanceNotAppliedError

Hook = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
"""Answers a call of a module, given the call as it is without the hook, and its arguments."""
Mine = Callable[[FrameType], bool]
"""Whether a call is one that a hook is for, given the frame that makes it."""
Watch = Callable[[Callable[..., Any]], Callable[..., Any]]
"""From a method to what stands in its place."""

SLOT = "_compiled_call_impl"
"""Where a `torch.nn.Module` has its compiled call. torch leaves it out of copies and pickles."""

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
                "this pipeline, or one that shares its scheduler, is in the middle of another guided call; "
                "wait for it, or give each thread a pipeline of its own: they may share everything but the scheduler"
            )
        _in_use.update(keys)
    try:
        yield
    finally:
        with _lock:
            _in_use.difference_update(keys)


class Caller:
    """The code of one call of a pipeline, by which its frames are distinguished from all others.

    Args:
        pipe: the pipeline.
        given: the arguments of the call. Functions among them are the user's code, even where they are written in the
            pipeline's class.

    Attributes:
        stranger: the function that called last from within the call and is not the pipeline's; "" while there is none.
    """

    def __init__(self, pipe: Any, given: Iterable[Any] = ()) -> None:
        self.pipe, self.stranger = pipe, ""
        self._call = getattr(inspect.unwrap(type(pipe).__call__), "__code__", None)
        self._written = tuple(f"{cls.__module__}.{cls.__qualname__}." for cls in type(pipe).__mro__)
        self._given = [getattr(one, "__code__", None) for one in given if callable(one)]
        self._frame: FrameType | None = None

    def run(self, arguments: Mapping[str, Any]) -> Any:
        """Call the pipeline; the calls that it makes until it returns are those of `owns`."""
        self._frame = sys._getframe()
        try:
            return self.pipe(**arguments)
        finally:
            self._frame = None  # which holds all that its call made

    def owns(self, frame: FrameType) -> bool:
        """Whether `frame` is of the pipeline's own code and this call: not of a callback, a hook or another call."""
        while _of_torch(frame) and frame.f_back:
            frame = frame.f_back
        if not self.within(frame):
            return False
        if not self._is_code(frame):
            self.stranger = f"{frame.f_code.co_qualname}() in {frame.f_code.co_filename}"
            return False
        return True

    def within(self, frame: FrameType) -> bool:
        """Whether `frame`, or what it was called by, is the pipeline's code in this call, with no other call between.

        The functions that a pipeline calls are, and so are callbacks.
        """
        at: FrameType | None = frame
        runs, inside = 0, False
        while at is not None and at is not self._frame:
            if not _of_torch(at):
                code = self._is_code(at)
                runs += code and not inside
                inside = code
            at = at.f_back
        return at is not None and runs == 1

    def _is_code(self, frame: FrameType) -> bool:
        code = frame.f_code
        if any(code is one for one in self._given):
            return False
        return code is self._call or f"{frame.f_globals.get('__name__')}.{code.co_qualname}".startswith(self._written)


def _of_torch(frame: FrameType) -> bool:
    # torch's own frames stand between a call and who makes it: a module's, those of `no_grad`.
    return str(frame.f_globals.get("__name__")).startswith("torch.")


def in_this_thread() -> Mine:
    """Return a test that accepts all calls of this thread, for a hook."""
    thread = threading.get_ident()
    return lambda frame: threading.get_ident() == thread


def below(name: str) -> Mine:
    """Return a test of which calls belong to the function that called this function's caller, for a hook.

    Args:
        name: the name of this function's caller; methods of that name in subclasses are skipped.
    """
    found: FrameType | None = sys._getframe(1)
    while found is not None and found.f_code.co_name == name:
        found = found.f_back

    def mine(frame: FrameType) -> bool:
        at: FrameType | None = frame
        while at is not None and _of_torch(at):
            at = at.f_back
        return at is found

    return mine


class _Intercepted:
    """What stands in a module's `SLOT`, or innermost among diffusers' hooks, while there are hooks on its calls."""

    def __init__(self, owner: Any, slot: str) -> None:
        self.owner, self.replaces = owner, slot in vars(owner)
        self.compiled: Callable[..., Any] | None = vars(owner).get(slot)
        self.hooks: tuple[tuple[Mine, Hook], ...] = ()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        frame, call = sys._getframe(1), self.compiled or self.owner._call_impl
        for mine, hook in self.hooks:
            if mine(frame):
                call = functools.partial(_hooked, hook, call)
        return call(*args, **kwargs)

    def __reduce__(self) -> Any:
        return type(None), ()  # a copy of a module that does not leave it out has no hooks


def _hooked(hook: Hook, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return hook(original, args, kwargs)


def compiled(module: Any) -> bool:
    """Whether calls of `module` itself run a compiled graph: ``torch.compile(module)``, or ``module.compile()``."""
    found = getattr(module, SLOT, None)
    if isinstance(found, _Intercepted):
        found = found.compiled
    return type(module).__name__ == "OptimizedModule" or found is not None


def parameters(module: Any) -> tuple[str, ...]:
    """The names of what a module is called with: its class's, which a patch of the instance may hide."""
    return _parameters(type(module).forward)


@functools.lru_cache(maxsize=256)
def _parameters(forward: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(inspect.signature(forward).parameters)[1:]


def arguments(module: Any, args: Iterable[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call of a module by name."""
    return dict(zip(parameters(module), args, strict=False)) | dict(kwargs)


def exchanged(
    module: Any, name: str, value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A call of a module with another value of one argument, given by position or by name as before."""
    if name in kwargs:
        return args, {**kwargs, name: value}
    place = parameters(module).index(name)
    return (*args[:place], value, *args[place + 1 :]), kwargs


def hooks_on(module: Any) -> tuple[Any, ...]:
    """The hooks on the calls of `module`."""
    found = vars(module).get(SLOT)
    return found.hooks if isinstance(found, _Intercepted) else ()


def diffusers_hooks(module: Any) -> Any:
    """The functions that diffusers' hooks (caches, offload of groups) of a module call, innermost first."""
    return getattr(vars(module).get("_diffusers_hook"), "_fn_refs", ())


def _slot(module: Any, inside: bool) -> tuple[Any, str]:
    """Where calls of `module` are taken over: outside of everything, or inside of diffusers' own hooks."""
    if inside and (functions := diffusers_hooks(module)):
        return functions[0], "forward" if functions[0].original_forward is None else "original_forward"
    return module, SLOT


@contextmanager
def calling(module: Any, hook: Hook, mine: Mine, inside: bool = False) -> Iterator[None]:
    """Replace the calls of a module that are `mine` by ``hook(original, args, kwargs)`` while the context lasts.

    A module may have any number of these hooks at once, from any threads. A hook that is `inside` of the module's
    feature caches is not called where a cache answers.
    """
    own, (owner, slot) = (mine, hook), _slot(module, inside)
    with _lock:
        found = vars(owner).get(slot)
        if not isinstance(found, _Intercepted):
            # A compiled module hands what is set on to its inner one.
            found = vars(owner)[slot] = _Intercepted(owner, slot)
        found.hooks = (*found.hooks, own)
    try:
        yield
    finally:
        with _lock:
            found.hooks = tuple(one for one in found.hooks if one is not own)
            if not found.hooks and vars(owner).get(slot) is found:
                # torch reads the slot twice for a call; CPython does not switch to another thread between the two.
                if found.replaces:
                    vars(owner)[slot] = found.compiled
                else:
                    del vars(owner)[slot]


@contextmanager
def methods(owner: Any, watched: Mapping[str, tuple[Watch, Mine]]) -> Iterator[None]:
    """While the context lasts, ``owner.name`` is ``watch(owner.name)`` for `mine` calls, for each name.

    Signatures stay, names that `owner` does not have are passed over, and its copies and pickles have the originals.
    """
    hooked = [name for name in watched if hasattr(owner, name)]
    before = {name: vars(owner)[name] for name in (*hooked, "__getstate__") if name in vars(owner)}

    def state() -> Any:
        found = getstate()
        if not isinstance(found, dict):
            return found
        return {name: value for name, value in found.items() if name not in ours} | before

    getstate, ours = owner.__getstate__, {*hooked, "__getstate__"}
    for name in hooked:
        setattr(owner, name, _either(getattr(owner, name), *watched[name]))
    owner.__getstate__ = state
    try:
        yield
    finally:
        for name in ours:
            if name in before:
                setattr(owner, name, before[name])
            else:
                vars(owner).pop(name, None)


def _either(original: Callable[..., Any], watch: Watch, mine: Mine) -> Callable[..., Any]:
    watching = watch(original)

    @functools.wraps(original)
    def either(*args: Any, **kwargs: Any) -> Any:
        return (watching if mine(sys._getframe(1)) else original)(*args, **kwargs)

    return either


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
