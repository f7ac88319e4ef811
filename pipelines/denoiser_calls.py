"""The pipeline's calls of its denoisers during a guided call: feature caches, and calls that await the estimate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn

from ..guidance.rule import Stack
from .answerable import beyond
from .branch import Branch
from .caches import Caches
from .families.record import Family


class Waiting(NamedTuple):
    """A call that was answered before the estimate was known.

    Args:
        branch: the call.
        answer: the denoiser's own answer; None where the call is to be answered with the last one.
        shell: the tensor that the pipeline was given, to be filled with the estimate.
    """

    branch: Branch
    answer: Tensor | None
    shell: Tensor


class DenoiserCalls:
    """The calls that a pipeline makes of its denoisers.

    A pipeline that evaluates its conditions one after the other combines them after the last of its calls. All calls
    but the last get their own answer, in a tensor that is filled with the estimate when the last one is there.

    Args:
        family: the pipeline's record.
        stack: the stack, for messages.

    Attributes:
        last: what the denoiser returned at an earlier step, in whose form a step is answered that does not call it.
    """

    def __init__(self, family: Family, stack: Stack) -> None:
        self.family, self.stack = family, stack
        self.last: Any = None
        self._caches: dict[nn.Module, Caches] = {}
        self._waiting: list[Waiting] = []

    def branch(self, module: nn.Module, original: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Branch:
        """One call, given the denoiser, its call as it is without guidestack, and the pipeline's arguments."""
        if module not in self._caches:
            self._caches[module] = Caches(module, str(self.stack), not beyond(self.family, self.stack))
        if not self._waiting:
            self._caches[module].begin()
        return Branch(self.family, module, original, args, kwargs, self.last, self._caches[module])

    @property
    def waiting(self) -> int:
        """Calls of this evaluation that wait for the estimate."""
        return len(self._waiting)

    def wait(self, branch: Branch, form: Tensor, answer: Tensor | None) -> Any:
        """Answer a call with a copy of `form`, to be filled later, in the form in which the denoiser returns it.

        Args:
            branch: the call.
            form: a tensor like its answer.
            answer: its answer; None where it is to be answered with the last call.
        """
        self._waiting.append(Waiting(branch, answer, form.clone()))
        return branch.returned(self._waiting[-1].shell)

    def taken(self) -> list[Waiting]:
        """Return the waiting calls, and forget that they wait."""
        waiting, self._waiting = self._waiting, []
        return waiting

    def forget(self) -> None:
        """Leave nothing of the guided call in the feature caches."""
        for caches in self._caches.values():
            caches.forget()
