"""The factory of the networks that answer a stack's queries, one for each evaluation of a guided call."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from ..guidance.errors import warn
from ..guidance.keyed import Keys
from ..guidance.prediction import Parameterization
from ..guidance.query import POSITIVE, Perturbation, Query, Request
from ..guidance.rule import Stack
from . import edits
from .arguments import calls_back
from .branch import Branch
from .families.record import Call, Family, Pipeline, Rows
from .network import PipelineNetwork
from .prepared import Prepared
from .prompts import Prompts, uses_negative
from .second import Second


class NetworkFactory:
    """Makes a `PipelineNetwork` for each evaluation, and keeps what these have in common.

    Args:
        pipe: the pipeline.
        family: its record.
        prompts: what is evaluated beside the prompt.
        emitted: what the denoiser emits.
        fixed: whether every call has the rows of the pipeline's own, asked for or not.
        seconds: the networks beside the denoiser, by name.
        scaled: from samples to what the pipeline makes of them for its denoiser.

    Attributes:
        extra: row arguments of the conditions that the pipeline does not evaluate by itself, by name.
        whole: the prompt's whole answer at the step before, which rows keep that are not evaluated at this one.
        names: the conditions that the pipeline evaluates by itself, in its order.
        texts: row arguments of the texts that edits of the prompt's own pass carry, by condition.
    """

    def __init__(
        self,
        pipe: Pipeline,
        family: Family,
        prompts: Prompts,
        emitted: Parameterization,
        fixed: bool,
        seconds: Mapping[str, Second] | None = None,
        scaled: Callable[[Tensor], Tensor] = lambda x: x,
    ) -> None:
        self.pipe, self.family, self.prompts, self.emitted, self.fixed = pipe, family, prompts, emitted, fixed
        self.seconds, self.scaled = seconds or {}, scaled
        self.extra: dict[str, Rows] = {}
        self.texts: dict[str, Rows] = {}
        self.whole: Tensor | None = None
        self.prepared = Prepared()
        self._changing = False  # whether a callback may write into the conditions
        # The half that differs from the prompt's by its text only; an editing pipeline's negative has no picture.
        self._contrast = "image" if "image" in family.halves else "negative"
        self.names = tuple(map(self._named, family.halves))

    def _named(self, half: str) -> str:
        return half if half != self._contrast or not self.prompts.empty else "null"

    def encode(self, stack: Stack, call: Call) -> None:
        """Encode the prompts that the stack asks for and the pipeline does not evaluate by itself."""
        wanted = {query.condition for query in stack.asks()}
        self._changing = calls_back(call)
        if any(self.prompts.negatives) and not uses_negative(stack):
            warn(f"a negative prompt was given, and no rule of {stack} uses it")
        self.extra = self.prompts.encoded(self.pipe, self.family, call, wanted)
        halves = any(not one.startswith("independent") for one in wanted - {"positive"})
        if self.family.sequential or not halves:  # else they are in the pipeline's own call
            for text in {edit.text for edit in stack.own_pass if edit.text}:
                self.texts[text] = self.prompts.negative_rows(self.pipe, self.family, call)

    def made(
        self,
        branches: Mapping[str, Branch],
        branch: Branch,
        batch: int,
        keys: tuple[Keys, ...],
        part: tuple[slice, ...],
        answered: Mapping[str, Tensor] | None = None,
    ) -> PipelineNetwork:
        """The network of one evaluation.

        Args:
            branches: the conditions that the pipeline evaluates, each with the call that has its rows.
            branch: the last of these calls.
            batch: samples.
            keys: where randomness comes from, in this evaluation and in the next ones.
            part: where the samples are in an answer, on the axes behind the batch.
            answered: native outputs of conditions that were evaluated already, for all samples.
        """
        if self._changing:
            self.prepared.carried.clear()
        aliases = {self._contrast: "null"} if self.prompts.empty else {}
        if "negative:0" not in self.extra:
            aliases["negative:0"] = self._named(self._contrast) if self.prompts.first else "null"
        return PipelineNetwork(
            self.family,
            branches,
            batch,
            extra=self.extra,
            aliases=aliases,
            parameterization=self.emitted,
            part=part,
            keys=keys[0],
            ahead=keys,
            random={
                f"independent:{name}": functools.partial(draw, self.pipe) for name, draw in self.family.random.items()
            },
            perturb=self._perturbed,
            answered=answered,
            prepared=self.prepared,
            whole=self.whole,
            fixed=self.fixed,
            seconds=self.seconds,
            texts=self.texts,
            scaled=self.scaled,
        )

    def alone(self, branch: Branch, name: str, part: tuple[slice, ...], max_rows: int | None) -> Tensor:
        """The denoiser's own answer to one of several calls, in calls of at most `max_rows` rows each."""
        batch = len(branch.sample)
        if max_rows is None or max_rows >= batch:
            return branch.call(branch.arguments, [Request(Query(name), None)])
        network = self.made({"positive": branch}, branch, batch, (Keys((), 0, 0),), part)
        pieces = [tuple(range(start, min(start + max_rows, batch))) for start in range(0, batch, max_rows)]
        return torch.cat([network.native([Request(POSITIVE, rows)])[0] for rows in pieces])

    def _perturbed(
        self, module: Any, perturbation: Perturbation, generators: Sequence[torch.Generator]
    ) -> AbstractContextManager[None]:
        clock = functools.partial(self.family.clock, self.pipe)
        return edits.edited(module, perturbation, generators, self.prepared.architecture(module), clock)
