"""Values that the denoiser's calls of a run share, made once: random conditions, row numbers, blocks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..guidance.keyed import Keys
from ..guidance.query import sent
from .edits import Architecture, Carried, architecture

MAX_ENTRIES = 32
"""Entries that are kept: a run asks for a few, again and again; one whose samples stop one by one leaves old ones."""


class Prepared:
    """Values that the networks of one run share.

    None but `carried` depends on the conditions, which callbacks may change.

    Attributes:
        drawn: random conditions by name and by the evaluation that they are for.
        carried: what a network's cross-attention is handed for a text that edits of the prompt's own pass carry.
    """

    def __init__(self) -> None:
        self._rows: dict[tuple[tuple[int, ...], torch.device], Tensor] = {}
        self._architectures: dict[nn.Module, Architecture] = {}
        self.drawn: dict[tuple[str, Keys], Mapping[str, Any]] = {}
        self.carried: dict[tuple[nn.Module, str], Carried] = {}

    def rows(self, rows: tuple[int, ...], device: torch.device) -> Tensor:
        """The row numbers `rows` as a tensor on `device`, sent there once."""
        if (rows, device) not in self._rows:
            if len(self._rows) >= MAX_ENTRIES:
                self._rows.clear()
            self._rows[rows, device] = sent(rows, device)
        return self._rows[rows, device]

    def architecture(self, module: nn.Module) -> Architecture:
        """The blocks of `module` and its time embedding, looked up once."""
        if module not in self._architectures:
            self._architectures[module] = architecture(module)
        return self._architectures[module]
