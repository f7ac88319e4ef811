"""A pipeline's call of its denoiser, which a guided call answers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

from torch import Tensor

from ..guidance.errors import InputError
from ..guidance.query import Request
from .caches import Caches
from .families.record import Family
from .hooks import compiled
from .rows import copied, look_up
from .second import Second


class Branch:
    """One call that a pipeline makes of its denoiser.

    Args:
        family: the pipeline's record.
        module: the denoiser.
        original: its call, as it is without guidestack.
        args: what the pipeline gives it by position.
        kwargs: and by name.
        last: what it returned at an earlier step, in whose form a step is answered that does not call it.
        caches: the denoiser's feature caches, of a guided call.
    """

    def __init__(
        self,
        family: Family,
        module: Any,
        original: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        last: Any = None,
        caches: Caches | None = None,
    ) -> None:
        self.module, self.caches = module, caches
        self.original, self.given, self.named = original, family.positional[: len(args)], tuple(kwargs)
        arguments = dict(zip(family.positional, args, strict=False)) | kwargs
        # Pipelines and networks write into the dictionaries and lists that they hand on (Flux: an adapter's pictures;
        # HunyuanDiT takes residuals out one by one).
        self.arguments: dict[str, Any] = {name: copied(value) for name, value in arguments.items()}
        self.sample = family.unpack(self.arguments[family.sample])
        self.family = family
        self.output: Any = last

    def track(self, place: tuple[slice, ...], zero: Tensor, batch: int) -> None:
        """Connect the samples of this call to a leaf of autograd, so that gradients reach it.

        Args:
            place: where x is in the samples that the denoiser is given.
            zero: what is added there: 0, with the graph that leads to the leaf; shape ``(B, ...)``.
            batch: samples B.
        """
        sample = self.sample.detach().clone()
        sample[place] = sample[place] + zero.to(sample.dtype).repeat(len(sample) // batch, *[1] * (zero.ndim - 1))
        self.sample = sample
        self.arguments[self.family.sample] = self.family.pack(sample)

    def call(
        self,
        arguments: Mapping[str, Any],
        requests: Sequence[Request] = (),
        own: bool = True,
        drawn: bool = False,
        second: Second | None = None,
    ) -> Tensor:
        """Call the denoiser with other arguments of the same names, and return its native output.

        Args:
            arguments: what it is given.
            requests: what they ask.
            own: whether they are the pipeline's own.
            drawn: whether some of them were drawn for this call.
            second: the network that answers in the denoiser's place, if one does.
        """
        positional = [copied(arguments[name]) for name in self.given]
        named = {name: copied(arguments[name]) for name in self.named}
        rows = len(arguments[self.family.sample])
        module = self.module if second is None else second.of(self.module)
        caches = self.caches if module is self.module else None
        with (
            nullcontext() if caches is None else caches.asking(requests, rows, own, drawn),
            nullcontext(self.original) if second is None else second.answering(self.module, self.original) as network,
        ):
            output = network(*positional, **named)
        self.output = output
        answer = self.family.unpack(output[0])  # the prediction, of a tuple and of a model output alike
        if self.family.upcasts:
            answer = answer.float()
        return answer.clone() if compiled(module) else answer  # the next run of a CUDA graph overwrites its output

    def at(self, sample: Tensor, later: float = 0.0) -> Branch:
        """A copy of this call of the denoiser with other samples and another time.

        Args:
            sample: shape ``(rows, ...)``.
            later: what is added to the time, in the unit in which the pipeline gives it to the denoiser.
        """
        moved = copy.copy(self)
        moved.sample, moved.arguments = sample, {**self.arguments, self.family.sample: self.family.pack(sample)}
        if later:
            moved.arguments[self.family.timestep] = self.arguments[self.family.timestep] + later
        return moved

    def checked(self, name: str) -> Any:
        """A row argument with all its rows, or with a single one, which some pipelines leave to the network to repeat.

        Raises:
            InputError: it has another number of rows.
        """
        if name == self.family.sample:
            return self.sample
        value = look_up(self.arguments, name)
        axis, wanted = self.family.axes.get(name, 0), len(self.sample)
        for one in value if self._several(value, name) else [value]:
            if isinstance(one, Tensor) and one.shape[axis] not in (1, wanted):
                raise InputError(
                    f"the denoiser is given {name} with {one.shape[axis]} rows for a batch of {wanted}, so that it "
                    "cannot be told whose they are; give the pipeline one for each prompt, or one for all"
                )
        return value

    def whole(self, name: str) -> Any:
        """A row argument with all its rows.

        Raises:
            InputError: it has another number of rows.
        """
        value, axis, wanted = self.checked(name), self.family.axes.get(name, 0), len(self.sample)

        def each(one: Any) -> Any:
            if isinstance(one, Tensor) and one.shape[axis] == 1 < wanted:
                return one.expand(*one.shape[:axis], wanted, *one.shape[axis + 1 :])
            return one

        return type(value)(map(each, value)) if self._several(value, name) else each(value)

    def _several(self, value: Any, name: str) -> bool:
        """Whether a row argument is a list of tensors that have rows."""
        return isinstance(value, list | tuple) and name not in self.family.listed

    def returned(self, value: Tensor) -> Any:
        """`value` in the form in which the denoiser returns its prediction; after at least one `call` of the run."""
        output, packed = self.output, self.family.pack(value)
        return (packed, *output[1:]) if isinstance(output, tuple) else type(output)(packed)
