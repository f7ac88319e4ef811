"""A record of what a pipeline does in a call: its denoiser's calls and its scheduler's steps, without guide()."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..branch import Branch
from ..families.lookup import denoisers_of
from ..families.record import Family, Pipeline
from ..hooks import calling, hooks_on, in_this_thread, methods
from ..rows import look_up


@dataclass(frozen=True)
class Called:
    """One call of the denoiser.

    Attributes:
        step: steps that the scheduler had made.
        rows: rows in the batch.
        arguments: its row arguments, by name.
        time: its time; None if it was given none.
        output: what it answered.
        both: whether the record says that all halves are being evaluated; None outside of the pipeline's own calls.
    """

    step: int
    rows: int
    arguments: Mapping[str, Any]
    time: float | None
    output: Tensor
    both: bool | None


@dataclass
class Seen:
    """The record of one call of the pipeline.

    Attributes:
        calls: the calls of the denoiser.
        told: the network output that the scheduler was given at each step.
        times: the timestep that it was given at each step.
        reached: the samples that it returned at each step.
        timesteps: all of its timesteps.
        parted: whether the denoiser answers for more than the samples: what the scheduler makes of the rest goes
            nowhere, and guide() leaves it as it is for the prompt.
        left: what was in the place of our own hooks at the end.
        result: what the pipeline returned.
    """

    calls: list[Called] = field(default_factory=list)
    told: list[Tensor] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    reached: list[Tensor] = field(default_factory=list)
    timesteps: Tensor | None = None
    parted: bool = False
    left: list[str] = field(default_factory=list)
    result: Any = None

    @property
    def samples(self) -> list[Tensor]:
        """The samples to compare: those after each step, or only those at the end."""
        if not self.parted:
            return self.reached
        result = self.result if isinstance(self.result, Tensor) else self.result[0]
        return [result] if isinstance(result, Tensor) else self.reached

    def size(self) -> float:
        """The largest number in the samples."""
        return max(float(one.abs().max()) for one in self.samples)

    def away(self, other: Seen) -> float:
        """How far the samples of two calls are apart at most; inf where they differ in shape, or in the result only."""
        if [one.shape for one in self.samples] != [one.shape for one in other.samples]:
            return float("inf")
        pairs = zip(self.samples, other.samples, strict=True)
        away = max(float((one.float() - two.float()).abs().max()) for one, two in pairs)
        return away if away or same(self.result, other.result) else float("inf")

    def finite(self) -> bool:
        """Whether the call took steps, and all samples are finite."""
        return bool(self.reached) and all(bool(torch.isfinite(one).all()) for one in self.reached)


def same(one: Any, two: Any) -> bool:
    """Whether two results, or states, are equal to the bit: tensors and arrays by what they hold."""
    if isinstance(one, Tensor) or isinstance(two, Tensor):
        if not (isinstance(one, Tensor) and isinstance(two, Tensor)):
            return False
        # NaN is in tables of schedulers, and equal to itself there.
        return (
            one.shape == two.shape and one.dtype == two.dtype and bool(torch.equal(one.nan_to_num(), two.nan_to_num()))
        )
    if isinstance(one, Mapping) and isinstance(two, Mapping):
        return one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(two, list | tuple):
        return len(one) == len(two) and all(map(same, one, two))
    if isinstance(one, type) or isinstance(two, type):
        return one is two
    if hasattr(one, "tobytes") and hasattr(two, "tobytes"):  # arrays and pictures
        return bool(one.tobytes() == two.tobytes())
    return type(one) is type(two) and (one is two or bool(one == two))


def copied(value: Any) -> Any:
    """A row argument as it is now: pipelines write into theirs."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    return type(value)(map(copied, value)) if isinstance(value, list | tuple) else value


@contextmanager
def _ours(pipe: Pipeline, family: Family, left: list[str]) -> Iterator[None]:
    """Note in `left` what is not as it was at the start; our own hooks end behind, and would put it in order."""

    def there() -> dict[str, Any]:
        found = {f"{type(one).__name__}: calls": hooks_on(one) for one in denoisers_of(pipe, family)}
        return found | {
            f"scheduler: {name}": one for name, one in vars(pipe.scheduler).items() if inspect.isroutine(one)
        }

    before = there()
    try:
        yield
    finally:
        after = there()
        left += [name for name in {**before, **after} if before.get(name) != after.get(name)]


@contextmanager
def watching(pipe: Pipeline, family: Family, call: Mapping[str, Any] | None = None) -> Iterator[Seen]:
    """Watch what happens while the context lasts; inside guide(), what really reaches the network.

    Args:
        pipe: the pipeline.
        family: its record.
        call: the arguments of the pipeline's own call, to ask the record about; None for a guided one.
    """
    seen, scheduler = Seen(), pipe.scheduler
    names = list(inspect.signature(scheduler.step).parameters)

    def called(module: Any, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        output = original(*args, **kwargs)
        try:
            branch = Branch(family, module, original, args, kwargs)
            rows, time = len(branch.sample), branch.arguments.get(family.timestep)
            told = float(torch.as_tensor(time).max()) if time is not None else None  # of a given picture it is 0
            arguments = {name: copied(look_up(branch.arguments, name)) for name in family.rows}
            both = None if call is None else bool(family.branches(pipe, call))
            seen.parted = seen.parted or bool(family.part(pipe, branch.arguments))
            seen.calls.append(Called(len(seen.told), rows, arguments, told, copied(family.unpack(output[0])), both))
        except Exception as error:  # in code of the record, or on what it says
            names = "`positional`, `sample`, `rows`, `unpack` or `branches`"
            raise RecordError(f"{names} does not fit: {type(error).__name__}: {error}") from error
        return output

    def step(original: Callable[..., Any]) -> Callable[..., Any]:
        def stepped(*args: Any, **kwargs: Any) -> Any:
            given = dict(zip(names, args, strict=False)) | kwargs
            told = copied(given.get("model_output"))
            result = original(*args, **kwargs)
            seen.told.append(told)
            seen.times.append(float(given["timestep"]))
            seen.reached.append(copied(result[0]))
            return result

        return stepped

    mine = in_this_thread()
    with ExitStack() as hooks:
        for denoiser in denoisers_of(pipe, family):
            hooks.enter_context(calling(denoiser, functools.partial(called, denoiser), mine))
        hooks.enter_context(methods(scheduler, {"step": (step, mine)}))
        hooks.enter_context(_ours(pipe, family, seen.left))
        yield seen
    seen.timesteps = getattr(scheduler, "timesteps", None)


class RecordError(Exception):
    """The family record does not fit the arguments that the pipeline gives its denoiser."""


class OnPurpose(Exception):
    """The error that the self-test raises in the middle of a call."""


@contextmanager
def failing(pipe: Pipeline, family: Family, at: int) -> Iterator[list[str]]:
    """While the context lasts, the denoiser's call number `at`, counted from 0, raises `OnPurpose`.

    Yields:
        What is left in the place of our own hooks; filled at the end.
    """
    calls, left = 0, list[str]()

    def called(original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        nonlocal calls
        calls += 1
        if calls > at:
            raise OnPurpose
        return original(*args, **kwargs)

    with ExitStack() as hooks:
        for denoiser in denoisers_of(pipe, family):
            hooks.enter_context(calling(denoiser, called, in_this_thread()))
        hooks.enter_context(_ours(pipe, family, left))
        yield left
