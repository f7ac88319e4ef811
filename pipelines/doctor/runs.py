"""Runs of a pipeline on the same small call, by itself and through guide(), watched."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch

from ...guidance.report import Report
from ..families.lookup import denoisers_of
from ..families.record import Family, Pipeline
from ..guide import guide
from . import example
from .state import differences, kept, state
from .watch import OnPurpose, Seen, failing, watching

SCALE, IMAGE_SCALE = 3.0, 2.0  # far from the values of `guided` in records, so that these cannot stand in for them


class Runs:
    """Runs of one pipeline on a small call, by itself and guided, each made when it is first asked for.

    Args:
        pipe: the pipeline.
        family: its record.
        call: arguments of a call of it, without guidance.

    Attributes:
        plain: a run of the pipeline by itself, without guidance.
        own: one with its own guidance; None where it has none.
        gated: one with the very arguments of the record's `guided`, likewise.
        guided: one of `stack` through guide().
        stack: the text of the stack that is the pipeline's own guidance, or of the empty one where it has none.
        report: that run's account.
        left: what `guided` left otherwise than the pipeline's own run just before it.
        cannot: why there is no guidance to compare with, or "".

    Raises:
        Exception: whatever the pipeline by itself raises on these arguments.
    """

    def __init__(self, pipe: Pipeline, family: Family, call: dict[str, Any]) -> None:
        self.pipe, self.family, self.call = pipe, family, call
        self.cannot = family.cannot(pipe) or ("" if family.scale else _NO_SCALE)
        self.plain = self.stock(self.plain_call)
        self.own = None if self.cannot else self.stock(self.own_call)
        self.gated = None if self.cannot else self.stock({**self._filled, **family.guided})
        self.samples = example.samples(call) or self.plain.calls[0].rows

    # --- arguments -----------------------------------------------------------------------------------------------

    @property
    def plain_call(self) -> dict[str, Any]:
        """The arguments that turn the pipeline's own guidance off; the scale that a distilled network takes is kept."""
        embedded = self.family.embedded(self.pipe)
        off = {name: value for name, value in self.family.unguided.items() if name != embedded}
        return {**self.without_negative, **off}

    @property
    def own_call(self) -> dict[str, Any]:
        """The arguments with the pipeline's own guidance at `SCALE`."""
        more = {"image_guidance_scale": IMAGE_SCALE} if self.three else {}
        # What `guided` turns off beside the scale is a part of its own guidance where the record has a text for it.
        return {**self._filled, **({} if self.family.own else self.family.guided), self.family.scale: SCALE, **more}

    @property
    def _filled(self) -> dict[str, Any]:
        return {**{name: one for name, one in self.family.filled.items() if self.call.get(name) is None}, **self.call}

    @property
    def stock_call(self) -> dict[str, Any]:
        """The arguments of the pipeline's own call that `stack` is compared with."""
        return self.plain_call if self.own is None else self.own_call

    @property
    def stack_call(self) -> dict[str, Any]:
        """The arguments of the guided call that is compared with the pipeline's own."""
        return self.without_negative if self.own is None else self.call

    @property
    def without_negative(self) -> dict[str, Any]:
        """The call without a negative prompt, in whatever form."""
        return {name: value for name, value in self.call.items() if not name.startswith("negative_")}

    @property
    def three(self) -> bool:
        """Whether the pipeline's own guidance has a picture's scale as well."""
        return "image" in self.family.halves

    @property
    def stack(self) -> str:
        """The pipeline's own guidance, as a stack."""
        if self.cannot:
            return "stack()"
        if self.three:
            return f"cfg({IMAGE_SCALE:g}) | cfg({1 + SCALE - IMAGE_SCALE:g}, against='image')"
        return " | ".join(filter(None, (f"cfg({SCALE + self.family.offset:g})", self.family.own)))

    @property
    def exact(self) -> bool:
        """Whether guide() computes the pipeline's own guidance in the order in which the pipeline does."""
        return not (self.family.offset or self.three)

    # --- runs ----------------------------------------------------------------------------------------------------

    def stock(self, call: Mapping[str, Any]) -> Seen:
        """A run of the pipeline by itself."""
        with quiet(self.pipe, self.family), watching(self.pipe, self.family, call) as seen:
            seen.result = self.pipe(**example.fresh(call))
        return seen

    def run(
        self, stack: str, call: Mapping[str, Any] | None = None, max_rows: int | None = None
    ) -> tuple[Seen, Report]:
        """A guided run, watched where the network is really called."""
        guided = guide(self.pipe, stack, max_rows=max_rows)
        with quiet(self.pipe, self.family), watching(self.pipe, self.family) as seen:
            seen.result = guided(**example.fresh(self.call if call is None else call))
        assert guided.report is not None  # the call ended
        return seen, guided.report

    @cached_property
    def _first(self) -> tuple[Seen, Report, list[str]]:
        """The run of `stack`, and what it leaves otherwise than the pipeline by itself from where it began."""
        self.stock(self.stock_call)  # its notes on itself are those of such a call: a guided one puts them back
        with kept(self.pipe):
            self.stock(self.stock_call)
            wanted = self._state()
        with kept(self.pipe):
            seen, report = self.run(self.stack, self.stack_call)
            return seen, report, [*seen.left, *differences(wanted, self._state())]

    @property
    def guided(self) -> Seen:
        """The guided run that is compared with the pipeline's own."""
        return self._first[0]

    @property
    def report(self) -> Report:
        """The report of the guided run."""
        return self._first[1]

    @property
    def left(self) -> list[str]:
        """What the guided run left otherwise than the pipeline by itself."""
        return self._first[2]

    def _state(self) -> dict[str, Any]:
        return state(self.pipe, memory=not self.plain.parted)

    def broken(self, at: int) -> list[str]:
        """What a guided run leaves otherwise than the pipeline by itself, if the denoiser's call `at` fails in both.

        Raises:
            OnPurpose: it was never called so often.
        """
        self.stock(self.stock_call)
        with kept(self.pipe):
            self._fail(self.pipe, self.stock_call, at)
            wanted = self._state()
        with kept(self.pipe):
            left = self._fail(guide(self.pipe, self.stack), self.stack_call, at)
            return [*left, *differences(wanted, self._state())]

    def _fail(self, run: Callable[..., Any], call: Mapping[str, Any], at: int) -> list[str]:
        with quiet(self.pipe, self.family), failing(self.pipe, self.family, at) as left:
            try:
                run(**example.fresh(call))
            except OnPurpose:
                return left
        raise OnPurpose(f"the denoiser was called {at} times or less, and a call that fails at the next did not")

    # --- numbers -------------------------------------------------------------------------------------------------

    @property
    def rounding(self) -> float:
        """How far two computations of the same may be apart, as a share of the samples' size."""
        return max(2e-4, 8 * self._eps)

    @property
    def least(self) -> float:
        """What guidance must move at least to be told from none, as a share of the samples' size."""
        return max(2e-6, 2 * self._eps)

    @property
    def _eps(self) -> float:
        weight: Any = next(denoisers_of(self.pipe, self.family)[0].parameters(), torch.empty(0))
        return torch.finfo(weight.dtype if weight.is_floating_point() else torch.float32).eps


_NO_SCALE = "its record names no argument with the scale of its own guidance: owned says 'cfg(scale)' of none of guided"


@contextmanager
def quiet(pipe: Pipeline, family: Family) -> Iterator[None]:
    """While the context lasts, no warnings, and the same global random numbers, which are left as they were."""
    weight: Any = next(denoisers_of(pipe, family)[0].parameters(), torch.empty(0))
    devices = [weight.device] if weight.device.type in ("cuda", "xpu") else []  # others cannot be forked
    kind = devices[0].type if devices else "cuda"
    with warnings.catch_warnings(), torch.random.fork_rng(devices, device_type=kind):
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        yield
