"""Feature caches on a denoiser: each query gets a cache context of its own, or the stack is refused.

diffusers' caches keep what a network computed and leave out parts of its next call. Most of them keep a state for each
*context*, a name that the pipeline gives to a call ("cond", "uncond"). A guided call asks the same network further
queries, for which these contexts would hold the wrong features. `Caches` gives every further query a context, resets it
where it cannot be continued, and refuses what a cache without contexts cannot keep apart.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..guidance.errors import UnsupportedPipelineError
from ..guidance.query import Query, Request
from .cache_kinds import KINDS, MAG, Kind
from .patches import replaced


@dataclass
class _Context:
    """A context of a feature cache, and the last call that used it.

    Attributes:
        asked: the queries of its last call.
        rows: the samples of each.
        evaluation: of its last call.
        returns: whether the same query can come back after a step without it: a perturbed one may have another amount.
    """

    asked: str
    rows: tuple[tuple[int, ...] | None, ...]
    evaluation: int
    returns: bool


class Caches:
    """The feature caches of a denoiser during one guided call.

    Args:
        module: the denoiser.
        stack: the stack's text, for messages.
        whole: whether ``rows="pipeline"`` of `guide` can run the stack, for messages.

    Attributes:
        cached: rows of this evaluation's calls that a cache answered, in part at least.
    """

    def __init__(self, module: nn.Module, stack: str, whole: bool) -> None:
        self.module, self.stack, self.whole = module, stack, whole
        self.keyed: list[tuple[Kind, Any, list[Any]]] = []
        self.single: list[tuple[Kind, Any, nn.Module]] = []
        self.patched = ""
        self.cached, self.evaluation = 0, -1
        self._asked: Counter[str] = Counter()
        self._contexts: dict[str, _Context] = {}
        self._last: _Context | None = None
        self._calls, self._own = 0, 0
        for place, part in module.named_modules():
            self._look(place, part)

    def _look(self, place: str, part: nn.Module) -> None:
        """Find what part of the denoiser remembers from call to call."""
        registry = vars(part).get("_diffusers_hook")
        for name, hook in registry.hooks.items() if registry is not None else ():
            if not hook._is_stateful:
                continue
            kind = KINDS.get(name, Kind(type(hook).__name__))
            managers = [value for value in vars(hook).values() if hasattr(value, "set_context")]
            if managers:
                self.keyed.append((kind, hook, managers))
            else:
                self.single.append((kind, hook, part))
        if not self.patched and (function := replaced(part)):
            self.patched = f"{place or type(part).__name__}.forward, which was replaced by {function}"

    @property
    def exact(self) -> str:
        """What remembers the denoiser's last call whatever it asked, so that only the pipeline's calls work; or ""."""
        return self.patched or next((kind.name for kind, _, _ in self.single if kind.exact), "")

    def begin(self) -> None:
        """Begin an evaluation; a context that the last one did not use begins anew if its cache counts calls."""
        self.evaluation += 1
        self.cached = self._calls = self._own = 0
        self._asked.clear()
        for name, one in list(self._contexts.items()):
            if one.evaluation < self.evaluation - 1:
                self._drop(name, counting=one.returns)
                if not one.returns:
                    del self._contexts[name]

    @contextmanager
    def asking(self, requests: Sequence[Request], rows: int, own: bool, drawn: bool = False) -> Iterator[None]:
        """Set the caches' contexts for one call of the denoiser, which is made while the context lasts.

        Args:
            requests: what it is asked.
            rows: of the call.
            own: whether the call is the pipeline's own, as it makes it.
            drawn: whether some of its arguments were drawn for this call.

        Raises:
            UnsupportedPipelineError: a cache cannot hold this call apart from others.
        """
        self._calls += 1
        self._own += own
        if self.exact and not own:
            raise self.not_exact(_text(requests))
        if not (self.keyed or self.single):
            yield
            return
        steady = all(one.query.perturbation is None for one in requests)
        now = _Context(_text(requests), tuple(one.rows for one in requests), self.evaluation, steady)
        self._one_memory(now)
        managers = [manager for _, _, those in self.keyed for manager in those]
        told = _context_of(managers[0]) if managers else None
        context = told if own and told is not None else _renamed(told, self._named(now.asked))
        name = context if isinstance(context, str) else context.name
        before = self._contexts.get(name)
        if drawn or before is None or before.rows != now.rows:
            self._drop(name)
        self._contexts[name] = now
        reused = any(kind.reuses(hook) for kind, hook, _ in self.single)
        for manager in managers:
            manager.set_context(context)
        self._count_on(name)
        try:
            yield
            for kind, _, those in self.keyed:
                reused |= any(kind.reused(one._state_cache[name]) for one in those if name in one._state_cache)
            self.cached += rows * reused
        finally:
            for manager in managers:
                manager.set_context(told)

    def end(self, calls: int) -> None:
        """End an evaluation in which the pipeline by itself makes `calls` calls.

        Raises:
            UnsupportedPipelineError: some of them were left out, and a cache needs them.
        """
        if self.exact and self._own != calls:
            raise self.not_exact(f"{self._own} of its {calls} calls of this step")

    def forget(self) -> None:
        """Drop all that a guided call left in the caches, at its end."""
        for name in self._contexts:
            self._drop(name)
        self._contexts.clear()
        if self._last is not None:
            self._reset()

    def foresee(self, planned: Iterable[tuple[int, Set[Query]]], own: Set[Query]) -> None:
        """Refuse before the first step a stack that will leave out what a cache needs at every step, or ask for more.

        Args:
            planned: the steps, each with what the denoiser is going to be asked.
            own: what the pipeline by itself asks at each step.

        Raises:
            UnsupportedPipelineError: the two differ.
        """
        for step, asked in planned:
            if asked != own:
                raise self.not_exact(f"{', '.join(sorted(map(str, asked))) or 'nothing'} at step {step}")

    def no_turns(self) -> None:
        """Refuse a stack whose rules evaluate at several places in a step.

        Raises:
            UnsupportedPipelineError: there is a feature cache.
        """
        names = [self.exact, *(kind.name for kind, *_ in (*self.keyed, *self.single))]
        if name := next(filter(None, names), ""):
            raise UnsupportedPipelineError(
                f"{self.stack} evaluates at several places in a step, and {name} of {type(self.module).__name__} keeps "
                "features from one step to the next; take it off"
            )

    def not_exact(self, asked: str) -> UnsupportedPipelineError:
        """The error for a stack that asks for other calls than the pipeline's own while `exact` is not empty."""
        remembers, off = (
            ("may remember", "put the method back") if self.patched else ("remembers", "take the cache off")
        )
        advice = f"{off[0].upper()}{off[1:]}"
        if self.whole:
            advice = f"Take rows='pipeline' of guide(), with which every call is the pipeline's own, or {off}"
        return UnsupportedPipelineError(
            f"{self.exact} of {type(self.module).__name__} {remembers} the last call, whatever was asked, and works "
            f"with the pipeline's own calls only; {self.stack} asks for {asked} instead. {advice}"
        )

    def _one_memory(self, now: _Context) -> None:
        """Reset the caches without contexts if the query or its rows changed or a step was left out."""
        if not self.single:
            return
        if self._calls > 1:
            raise UnsupportedPipelineError(
                f"{self.single[0][0].name} of {type(self.module).__name__} has one memory for all calls, and "
                f"{self.stack} needs several in a step: {now.asked} comes in a call of its own. Take a cache "
                "that has a memory for each, such as FirstBlockCache, or take this one off"
            )
        last, self._last = self._last, now
        if last is None or (last.asked, last.rows, last.evaluation) != (now.asked, now.rows, now.evaluation - 1):
            self._reset()

    def _reset(self) -> None:
        for _, hook, part in self.single:
            hook.reset_state(part)

    def _named(self, asked: str) -> str:
        """Return the name of a query's context; pieces of a query that is asked in pieces have one each."""
        self._asked[asked] += 1
        return f"guidestack: {asked} ({self._asked[asked]})"

    def _drop(self, name: str, counting: bool = False) -> None:
        """Reset a context; with `counting` only that of caches that count calls."""
        for kind, _, managers in self.keyed:
            for manager in managers if kind.counts or not counting else ():
                manager._state_cache.pop(name, None)

    def _count_on(self, name: str) -> None:
        """Set MagCache's step number in a context that begins late, by which it looks up what to leave out."""
        for kind, hook, managers in self.keyed:
            if kind is KINDS[MAG] and name not in managers[0]._state_cache:
                managers[0].get_state().step_index = self.evaluation % hook.config.num_inference_steps


def _text(requests: Sequence[Request]) -> str:
    return ", ".join(str(one.query) for one in requests)


def _context_of(manager: Any) -> Any:
    """The context that a pipeline set; up to diffusers 0.41 its name only."""
    found = vars(manager)
    return found["_context"] if "_context" in found else found.get("_current_context")


def _renamed(context: Any, name: str) -> Any:
    """A context of another name, at the same step."""
    if dataclasses.is_dataclass(context) and not isinstance(context, type):
        return dataclasses.replace(context, name=name)
    from diffusers.hooks import hooks

    return hooks.CacheContext(name) if hasattr(hooks, "CacheContext") else name
