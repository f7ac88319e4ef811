"""Asynchronous copies of small tensors from a device to the host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

EVENTS: dict[str, Callable[[], Any]] = {"cuda": torch.cuda.Event, "xpu": torch.xpu.Event}
"""By type of device, marks in its work that tell when a copy has arrived; of others it is made when it is needed."""


class Fetched:
    """A copy of a small tensor on the host.

    Args:
        tensor: what to copy, on any device, not to be written into; the copy is begun at once where the device
            can do it beside its other work.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._arrived: Any = None
        self._value = tensor
        if tensor.device.type in EVENTS:
            self._value = _landing(tensor).copy_(tensor, non_blocking=True)
            self._arrived = EVENTS[tensor.device.type]()
            self._arrived.record()

    @property
    def value(self) -> Tensor:
        """The tensor on the host. Waits if the copy has not arrived, which after a whole step it has."""
        if self._arrived is not None:
            self._arrived.synchronize()
            self._arrived = None
        self._value = self._value.cpu()
        return self._value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Fetched) and torch.equal(self.value, other.value)

    def __reduce__(self) -> tuple[type[Fetched], tuple[Tensor]]:
        return Fetched, (self.value,)


def _landing(tensor: Tensor) -> Tensor:
    """Memory on the host that a device can write to by itself."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
