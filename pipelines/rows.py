"""The rows of a denoiser's batch: which of its arguments have one row a sample, and how to take some of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from ..guidance.keyed import Keys
from ..guidance.prediction import Parameterization
from ..guidance.query import POSITIVE, Network, Perturbation, Request, sent
from .family import Draw, Family
from .time_embedding import KINDS

Index = slice | Tensor


def take(value: Any, index: Index, axis: int = 0, listed: bool = False) -> Any:
    """The rows of a per-row argument: a tensor, None, a list of tensors, or a list with an entry a row (`listed`)."""
    if value is None:
        return None
    if listed:
        return value[index] if isinstance(index, slice) else [value[row] for row in index.tolist()]
    if isinstance(value, list | tuple):
        return type(value)(take(item, index) for item in value)
    if axis:
        return value[(slice(None),) * axis + (index,)]
    return value[index]


def join(values: Sequence[Any], axis: int = 0, listed: bool = False) -> Any:
    """Per-row arguments one below the other."""
    if values[0] is None:
        return None
    if listed:
        return [row for value in values for row in value]
    if isinstance(values[0], list | tuple):
        return type(values[0])(join(items) for items in zip(*values, strict=True))
    return torch.cat(list(values), axis) if len(values) > 1 else values[0]


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


class Branch:
    """One call that a pipeline makes of its denoiser.

    Args:
        family: the pipeline's record.
        module: the denoiser.
        original: its call, as it is without guidestack.
        args: what the pipeline gives it by position.
        kwargs: and by name.
    """

    def __init__(
        self,
        family: Family,
        module: Any,
        original: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        self.module = module
        self.original, self.given, self.named = original, family.positional[: len(args)], tuple(kwargs)
        self.arguments: dict[str, Any] = dict(zip(family.positional, args, strict=False)) | kwargs
        self.sample = family.unpack(self.arguments[family.sample])
        self.family = family
        self._output: Any = None

    def call(self, arguments: Mapping[str, Any]) -> Tensor:
        """The denoiser's native output for other arguments of the same names."""
        positional = [arguments[name] for name in self.given]
        output = self.original(*positional, **{name: arguments[name] for name in self.named})
        self._output = output
        return self.family.unpack(output[0])  # the prediction, of a tuple and of a model output alike

    def returned(self, value: Tensor) -> Any:
        """`value` in the form in which the denoiser returns its prediction; after at least one `call`."""
        output, packed = self._output, self.family.pack(value)
        return (packed, *output[1:]) if isinstance(output, tuple) else type(output)(packed)


class PipelineNetwork(Network):
    """A pipeline's denoiser in the middle of the pipeline's own call.

    When everything the pipeline itself would evaluate in a call is wanted, and nothing else, the denoiser gets the very
    arguments that the pipeline made. Otherwise the wanted rows are taken from them, and rows of other prompts added.

    Args:
        family: the pipeline's record.
        branches: the conditions that the pipeline evaluates, in its order, each with the call that has its rows: one
            for all, or one for each.
        batch: samples B.
        extra: further conditions: row arguments with one row each, or with one for each sample.
        aliases: other names for some conditions.
        parameterization: what the denoiser emits.
        channels: size of axis 1 of the samples; what an answer has beyond it is kept in `rest`.
        keys: where randomness comes from.
        random: conditions that are drawn anew at each evaluation: ``draw(rows, generators)`` makes row arguments, one
            row a sample, given those of the prompt.
        perturb: a context in which the denoiser answers perturbed, given the perturbation and a generator for each
            row.
        answered: native outputs of conditions that were evaluated already, for all samples.

    Attributes:
        rest: channels of the prompt's answer beyond those of the sample (learned variances), or None.
    """

    def __init__(
        self,
        family: Family,
        branches: Mapping[str, Branch],
        batch: int,
        *,
        extra: Mapping[str, Mapping[str, Any]],
        aliases: Mapping[str, str],
        parameterization: Parameterization,
        channels: int,
        keys: Keys,
        random: Mapping[str, Draw],
        perturb: Callable[[Perturbation, Sequence[torch.Generator]], AbstractContextManager[None]],
        answered: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.branches, self.batch, self.extra = branches, batch, dict(extra)
        self.family, self.row_names = family, (family.sample, *family.rows)
        self.conditions = (*branches, *(name for name in extra if name not in branches), *random)
        self.aliases, self.parameterization, self.channels = aliases, parameterization, channels
        self.keys, self.random, self.perturb = keys, random, perturb
        self.perturbations = KINDS
        self.together = len(set(map(id, branches.values()))) == 1
        self.answered = answered or {}
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
            if output.shape[1] > self.channels and request.query == POSITIVE:
                self._keep(output[:, self.channels :], request.rows)
        return [output[:, : self.channels] for output in outputs]

    def _keep(self, rest: Tensor, rows: tuple[int, ...] | None) -> None:
        """The prompt's channels beyond those of the sample; under `max_rows` they come in pieces."""
        if rows is not None:
            before = rest.new_empty((self.batch, *rest.shape[1:])) if self.rest is None else self.rest
            rest = before.index_copy(0, sent(rows, rest.device), rest)
        self.rest = rest

    def _outputs(self, requests: Sequence[Request]) -> list[Tensor]:
        first = requests[0].query
        branch = self.branches.get(first.condition, self.branches["positive"])
        if all(request.rows is None for request in requests):
            if not first.perturbation and len(requests) == 1 and first.condition in self.answered:
                return [self.answered[first.condition]]
            whole = tuple(name for name, one in self.branches.items() if one is branch)
            if tuple(request.query.condition for request in requests) == whole:
                return list(branch.call(branch.arguments).chunk(len(requests)))
        chosen = [self._rows(request) for request in requests]
        arguments = dict(branch.arguments)
        for name in self.row_names:
            values = [rows[name] for rows in chosen]
            # Masks may be None for prompts of one length, and not for others.
            if any(value is not None for value in (look_up(arguments, name), *values)):
                put(arguments, name, self._joined(name, values))
        return list(torch.split(branch.call(arguments), [len(rows[self.row_names[0]]) for rows in chosen]))

    def _joined(self, name: str, values: list[Any]) -> Any:
        family = self.family
        if name == family.sample:
            return family.pack(join(values))
        return join(values, family.axes.get(name, 0), name in family.listed)

    def _whole(self, branch: Branch, name: str) -> Any:
        """A row argument with all its rows: some pipelines leave it to the network to repeat a single one."""
        if name == self.family.sample:
            return branch.sample
        value = look_up(branch.arguments, name)
        if isinstance(value, Tensor) and name not in self.family.axes and len(value) == 1 < len(branch.sample):
            return value.expand(len(branch.sample), *value.shape[1:])
        return value

    def _rows(self, request: Request) -> dict[str, Any]:
        condition = request.query.condition
        extra: Mapping[str, Any] = {}
        if condition not in self.branches:
            if condition in self.random and condition not in self.extra:
                prompt = self._rows(Request(POSITIVE, None))
                generators = self.keys.generators(range(self.batch), condition)
                self.extra[condition] = self.random[condition](prompt, generators)
            extra = self.family.completed(self.branches["positive"].arguments, self.extra[condition])
            condition = "positive"  # what other prompts do not say (adapters, residuals) is as for the prompt
        branch = self.branches[condition]
        start = [name for name, one in self.branches.items() if one is branch].index(condition) * self.batch
        index: Index = slice(start, start + self.batch)
        if request.rows is not None:
            index = sent([start + row for row in request.rows], branch.sample.device)
        axes, listed = self.family.axes, self.family.listed
        rows = {
            name: take(self._whole(branch, name), index, axes.get(name, 0), name in listed) for name in self.row_names
        }
        wanted: Index = slice(0, self.batch) if request.rows is None else sent(request.rows, branch.sample.device)
        for name, value in extra.items():
            axis, is_list = axes.get(name, 0), name in listed
            if value is not None and (len(value) if is_list else value.shape[axis]) == 1 < self.batch:
                value = list(value) * self.batch if is_list else value.repeat_interleave(self.batch, axis)
            rows[name] = take(value, wanted, axis, is_list)
        return rows
