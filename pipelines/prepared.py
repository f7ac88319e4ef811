"""What a run's calls of the denoiser have in common, made once: joined conditions, and row numbers on the device."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..guidance.keyed import Keys
from ..guidance.query import sent

MOST = 32
"""Entries that are kept: a run asks for a few, again and again; one whose samples stop one by one leaves old ones."""


class Prepared:
    """Values by key, each good for as long as what it was made of is the same tensors with the same contents.

    Attributes:
        drawn: random conditions by name and by the evaluation that they are for.
    """

    def __init__(self) -> None:
        self._made: dict[Hashable, tuple[list[tuple[Any, int | None]], Any]] = {}
        self._rows: dict[tuple[tuple[int, ...], torch.device], Tensor] = {}
        self.drawn: dict[tuple[str, Keys], Mapping[str, Any]] = {}

    def get(self, key: Hashable, sources: Sequence[Any], make: Callable[[], Any]) -> Any:
        """``make()``, or what it made for these sources before.

        Args:
            key: of the value.
            sources: all that it is made of: tensors, lists of them, or None.
            make: makes it; not to be written into.
        """
        leaves = [(leaf, _version(leaf)) for source in sources for leaf in _leaves(source)]
        known = self._made.get(key)
        if known and len(known[0]) == len(leaves) and all(map(_same, known[0], leaves)):
            return known[1]
        value = make()
        if len(self._made) >= MOST:
            self._made.clear()
        self._made[key] = leaves, value
        return value

    def rows(self, rows: tuple[int, ...], device: torch.device) -> Tensor:
        """Row numbers on `device`."""
        if (rows, device) not in self._rows:
            if len(self._rows) >= MOST:
                self._rows.clear()
            self._rows[rows, device] = sent(rows, device)
        return self._rows[rows, device]


def _same(one: tuple[Any, int | None], other: tuple[Any, int | None]) -> bool:
    return one[0] is other[0] and one[1] == other[1]


def _leaves(value: Any) -> list[Any]:
    if isinstance(value, list | tuple):
        return [leaf for item in value for leaf in _leaves(item)]
    return [value]


def _version(leaf: Any) -> int | None:
    """How often a tensor was written into."""
    return None if not isinstance(leaf, Tensor) or leaf.is_inference() else leaf._version
