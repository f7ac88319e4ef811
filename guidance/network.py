"""A plain callable as a network: what the sampling loop and the tests put between queries and a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from .errors import QueryError
from .keyed import Keys
from .prediction import Level, Parameterization
from .query import Network, Request, sent


class Denoiser(Protocol):
    """A network as a function.

    A model that can be perturbed has an attribute `perturbations`, the set of kinds, and takes ``perturbation=`` and
    ``generators=``, one for each row, from which its randomness must come. One whose answer to the prompt can be edited
    has an attribute `edits`, the set of kinds, and takes ``edits=`` and ``carried=``, with a row for each of x:
    conditions by name, and what an edit carries of the samples by its kind.
    """

    def __call__(self, x: Tensor, level: Level, conditions: Any, /) -> Tensor:
        """The model's output for x, shaped like it; `conditions` has one row for each row of x."""
        ...


def _select(tree: Any, rows: Tensor) -> Any:
    if isinstance(tree, Tensor):
        return tree[rows.to(tree.device)]
    return {key: _select(value, rows) for key, value in tree.items()}


def _concatenated(trees: Sequence[Any]) -> Any:
    if isinstance(trees[0], Tensor):
        return torch.cat(list(trees))
    return {key: _concatenated([tree[key] for tree in trees]) for key in trees[0]}


def _row_counts(tree: Any) -> set[int]:
    if isinstance(tree, Tensor):
        return {len(tree)}
    if isinstance(tree, Mapping):
        return set().union(*map(_row_counts, tree.values()))
    raise QueryError(f"a condition is a tensor, or a mapping of tensors, with one row a sample; got {tree!r}")


class CallableNetwork(Network):
    """Models called as functions, bound to one batch at one level.

    Args:
        models: the networks by name; ``"main"`` is the one that samples.
        x: noisy samples, shape ``(B, ...)``.
        level: their level.
        conditions: by name, in the order of the rows of a batch: a tensor, or a mapping of tensors, one row a sample.
            Or a function that draws a random one, ``draw(generators)`` with a generator for each sample; it is called
            ``"independent"``, or ``"independent:SOURCE"``.
        parameterization: what the models emit.
        aliases: other names for some conditions.
        keys: where randomness comes from; by default the samples have the seeds 0, 1, ...

    Raises:
        QueryError: a condition has another number of rows than x.
    """

    def __init__(
        self,
        models: Mapping[str, Denoiser],
        x: Tensor,
        level: Level,
        conditions: Mapping[str, Any],
        parameterization: Parameterization,
        aliases: Mapping[str, str] | None = None,
        keys: Keys | None = None,
    ) -> None:
        self.functions, self.x, self.level, self.trees = models, x, level, dict(conditions)
        self.keys = keys or Keys(tuple(range(len(x))))
        for name, tree in conditions.items():
            if not callable(tree):
                self._check(name, tree)
        self.parameterization = parameterization
        self.conditions = tuple(conditions)
        self.aliases = aliases or {}
        self.models = tuple(models)
        self.perturbations = frozenset().union(*(getattr(model, "perturbations", ()) for model in models.values()))
        self.edits = frozenset(getattr(models.get("main"), "edits", ()))
        self.differentiable = True

    def tracked(self, x: Tensor) -> Tensor:
        """Return `x` as a leaf of autograd: later answers are computed from it."""
        self.x = x.detach().requires_grad_()
        return self.x

    def _check(self, name: str, tree: Any) -> None:
        if counts := _row_counts(tree) - {len(self.x)}:
            raise QueryError(f"condition {name!r} has {counts.pop()} rows, the batch has {len(self.x)}")

    def _tree(self, name: str) -> Any:
        tree = self.trees[name]
        if callable(tree):
            tree = self.trees[name] = tree(self.keys.generators(range(len(self.x)), name))
            self._check(name, tree)
        return tree

    def run(self, requests: Sequence[Request]) -> list[Tensor]:
        """Concatenate the rows, call the model once, split the answer."""
        samples = [range(len(self.x)) if r.rows is None else r.rows for r in requests]
        rows = [sent(one, self.x.device) for one in samples]
        trees = [_select(self._tree(r.query.condition), row) for r, row in zip(requests, rows, strict=True)]
        first = requests[0].query
        options: dict[str, Any] = {}
        if first.perturbation:
            options["perturbation"] = first.perturbation
            options["generators"] = [
                generator
                for r, one in zip(requests, samples, strict=True)
                for generator in self.keys.generators(one, f"{first.perturbation.kind} {r.query.condition}")
            ]
        if first.edits:
            texts = {edit.text: self._tree(self.aliases.get(edit.text, edit.text)) for edit in first.edits if edit.text}
            carried = texts | {edit.kind: value for edit, value in requests[0].carried.items()}
            options["carried"] = _select(carried, torch.cat(rows))
            options["edits"] = first.edits
        output = self.functions[first.model](self.x[torch.cat(rows)], self.level, _concatenated(trees), **options)
        return list(torch.split(output, [len(row) for row in rows]))
