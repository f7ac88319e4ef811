"""A device that is not the host: tensors whose numbers the host can have only by waiting, which is counted.

The machine that runs the tests has none. A tensor of `Elsewhere` says that it is on the device "meta", and its numbers
are those of a tensor on the host that nobody outside of this file gets at. `Device` runs operations on them, refuses
those that mix them with tensors of the host, as an accelerator does, and counts what makes the host wait.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

aten = torch.ops.aten
MIXING = {aten.index.Tensor, aten.copy_.default, aten._to_copy.default}
"""May be given tensors of both sides."""


class Elsewhere(Tensor):
    """A tensor on the device."""

    own: Tensor

    @staticmethod
    def __new__(cls: type, own: Tensor) -> Elsewhere:
        made: Elsewhere = Tensor._make_wrapper_subclass(
            cls, own.shape, strides=own.stride(), dtype=own.dtype, device=torch.device("meta")
        )
        made.own = own
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} on a tensor of the device, outside of a run")


class Device(TorchDispatchMode):
    """While the context lasts, the device "meta" has numbers.

    Attributes:
        waits: what made the host wait, in order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        given = [one for one in tree_flatten((args, kwargs))[0] if isinstance(one, Tensor)]
        ours = [one for one in given if isinstance(one, Elsewhere)]
        self._check(func, given, ours)
        to = kwargs.get("device")
        here = bool(ours)
        if to is not None:
            here = torch.device(to).type == "meta"
            kwargs["device"] = torch.device("cpu")
            if (ours and not here) or (given and not ours and here and not kwargs.get("non_blocking")):
                self.waits.append(str(func))
        if func is aten._local_scalar_dense.default and ours:
            self.waits.append(str(func))
            here = False
        if func is aten.copy_.default and ours and not isinstance(args[0], Elsewhere):
            if not (kwargs.get("non_blocking") or (len(args) > 2 and args[2])):
                self.waits.append(str(func))
            here = False
        if func in (aten.nonzero.default, aten.masked_select.default) and ours:
            self.waits.append(str(func))  # whose size the host must know
        inner_args, inner_kwargs = tree_map(_inner, (args, kwargs))
        output = func(*inner_args, **inner_kwargs)
        if any(output is one.own for one in ours):  # written in place
            return next(one for one in ours if output is one.own)
        return tree_map(lambda one: Elsewhere(one) if isinstance(one, Tensor) else one, output) if here else output

    def _check(self, func: Any, given: list[Tensor], ours: list[Elsewhere]) -> None:
        host = [one for one in given if not isinstance(one, Elsewhere) and one.ndim]
        if ours and host and func not in MIXING:
            raise AssertionError(f"{func} was given tensors on the device and on the host")


def _inner(value: Any) -> Any:
    return value.own if isinstance(value, Elsewhere) else value
