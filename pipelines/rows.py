"""The rows of a denoiser's batch: which of its arguments have one row a sample, and how to take some of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from ..guidance.keyed import Keys
from ..guidance.prediction import Parameterization
from ..guidance.query import POSITIVE, Network, Perturbation, Request
from .family import Draw, Family
from .time_embedding import KINDS

Index = slice | Tensor


def take(value: Any, index: Index) -> Any:
    """The rows of a per-row argument: a tensor, None, or a list of them."""
    if isinstance(value, list | tuple):
        return type(value)(take(item, index) for item in value)
    return None if value is None else value[index]


def join(values: Sequence[Any]) -> Any:
    """Per-row arguments one below the other."""
    if isinstance(values[0], list | tuple):
        return type(values[0])(join(items) for items in zip(*values, strict=True))
    return None if values[0] is None else torch.cat(list(values)) if len(values) > 1 else values[0]


def look_up(arguments: Mapping[str, Any], path: str) -> Any:
    """``arguments["a"]["b"]`` for the path ``"a.b"``; None where nothing is there."""
    value: Any = arguments
    for key in path.split("."):
        if value is None or key not in value:
            return None
        value = value[key]
    return value


def put(arguments: dict[str, Any], path: str, value: Any) -> None:
    """Set ``arguments["a"]["b"]`` for the path ``"a.b"``, copying the dictionaries on the way."""
    *outer, last = path.split(".")
    for key in outer:
        arguments[key] = dict(arguments[key])
        arguments = arguments[key]
    arguments[last] = value


class PipelineNetwork(Network):
    """A pipeline's denoiser in the middle of the pipeline's own call.

    When everything the pipeline itself would evaluate is wanted, and nothing else, the denoiser gets the very arguments
    that the pipeline made. Otherwise the wanted rows are taken from them, and rows of other prompts added.

    Args:
        family: the pipeline's record.
        call: the denoiser, as it is without guidestack: ``call(**arguments)``, returning the native output.
        arguments: what the pipeline calls it with.
        branches: the conditions of the pipeline's batch, in order.
        batch: samples B.
        extra: further conditions: row arguments with one row each, or with one for each sample.
        aliases: other names for some conditions.
        parameterization: what the denoiser emits.
        keys: where randomness comes from.
        random: conditions that are drawn anew at each evaluation: ``draw(rows, generators)`` makes row arguments, one
            row a sample, given those of the prompt.
        perturb: a context in which the denoiser answers perturbed, given the perturbation and a generator for each
            row.

    Attributes:
        rest: channels of the prompt's answer beyond those of the sample (learned variances), or None.
    """

    def __init__(
        self,
        family: Family,
        call: Callable[[dict[str, Any]], Tensor],
        arguments: dict[str, Any],
        branches: tuple[str, ...],
        batch: int,
        extra: Mapping[str, Mapping[str, Tensor]],
        aliases: Mapping[str, str],
        parameterization: Parameterization,
        keys: Keys,
        random: Mapping[str, Draw],
        perturb: Callable[[Perturbation, Sequence[torch.Generator]], AbstractContextManager[None]],
    ) -> None:
        self.call, self.arguments, self.branches, self.batch, self.extra = call, arguments, branches, batch, dict(extra)
        self.row_names = (family.sample, *family.rows)
        self.conditions = (*branches, *(name for name in extra if name not in branches), *random)
        self.aliases, self.parameterization = aliases, parameterization
        self.keys, self.random, self.perturb = keys, random, perturb
        self.perturbations = KINDS
        self.channels = arguments[family.sample].shape[1]
        self.rest: Tensor | None = None

    def run(self, requests: Sequence[Request]) -> list[Tensor]:
        """One call of the denoiser."""
        perturbation = requests[0].query.perturbation
        if perturbation is None:
            return self._run(requests)
        generators = [
            generator
            for r in requests
            for generator in self.keys.generators(
                range(self.batch) if r.rows is None else r.rows, f"{perturbation.kind} {r.query.condition}"
            )
        ]
        with self.perturb(perturbation, generators):
            return self._run(requests)

    def _run(self, requests: Sequence[Request]) -> list[Tensor]:
        outputs = self._outputs(requests)
        for request, output in zip(requests, outputs, strict=True):
            if output.shape[1] > self.channels and request.query == POSITIVE and request.rows is None:
                self.rest = output[:, self.channels :]
        return [output[:, : self.channels] for output in outputs]

    def _outputs(self, requests: Sequence[Request]) -> list[Tensor]:
        if tuple(r.query.condition for r in requests) == self.branches and all(r.rows is None for r in requests):
            return list(self.call(self.arguments).chunk(len(requests)))
        chosen = [self._rows(request) for request in requests]
        arguments = dict(self.arguments)
        for name in self.row_names:
            values = [rows[name] for rows in chosen]
            if values[0] is not None:
                put(arguments, name, join(values))
        return list(torch.split(self.call(arguments), [len(rows[self.row_names[0]]) for rows in chosen]))

    def _rows(self, request: Request) -> dict[str, Any]:
        condition = request.query.condition
        extra: Mapping[str, Tensor] = {}
        if condition not in self.branches:
            if condition in self.random and condition not in self.extra:
                prompt = self._rows(Request(POSITIVE, None))
                generators = self.keys.generators(range(self.batch), condition)
                self.extra[condition] = self.random[condition](prompt, generators)
            extra = self.extra[condition]
            condition = "positive"  # what other prompts do not say (adapters, residuals) is as for the prompt
        start = self.branches.index(condition) * self.batch
        index: Index = slice(start, start + self.batch)
        if request.rows is not None:
            device = self.arguments[self.row_names[0]].device
            index = torch.tensor([start + row for row in request.rows], device=device)
        rows = {name: take(look_up(self.arguments, name), index) for name in self.row_names}
        count = len(rows[self.row_names[0]])
        for name, value in extra.items():
            if len(value) == 1:
                rows[name] = value.expand(count, *value.shape[1:])
            else:
                rows[name] = value if request.rows is None else value[list(request.rows)]
        return rows
