"""A pipeline's denoiser as a network that answers the queries of a stack, in the middle of the pipeline's own call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..guidance.errors import InputError, QueryError, UnsupportedPipelineError
from ..guidance.keyed import Keys
from ..guidance.prediction import Parameterization
from ..guidance.query import POSITIVE, Network, Perturbation, Query, Request, sent
from .branch import Branch
from .edits import EDITS, PERTURBATIONS, Architecture, Carried, carried, joint, own_pass
from .families.record import Draw, Family
from .gradients import check_backward
from .prepared import Prepared
from .rows import Index, join, look_up, matching, put, take
from .second import Second

TEXTS = "independent:tokens"
Chosen = tuple[tuple[int, ...] | None, str, Mapping[str, Any]]
"""The rows of a request, the evaluated condition that they are taken from, and what is in its place."""


class PipelineNetwork(Network):
    """The network that a stack asks: a pipeline's denoiser, in the middle of the pipeline's own call.

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
        part: where the samples are in an answer, on the axes behind the batch; the rest of it is kept in `whole`.
        keys: what random numbers are made from.
        random: conditions that are drawn anew at each evaluation: ``draw(rows, generators)`` makes row arguments, one
            row a sample, given those of the prompt.
        perturb: a context in which a network answers perturbed, given the network, the perturbation and a generator for
            each row.
        answered: native outputs of conditions that were evaluated already, for all samples.
        prepared: what the networks of a run share.
        ahead: `keys` and those of the next evaluations, for which random texts are encoded together.
        whole: the prompt's whole answer at the step before, which rows keep that are not evaluated at this one.
        fixed: whether every call has the rows of the pipeline's own, asked for or not.
        seconds: the networks beside the denoiser, by name.
        texts: the row arguments of the texts that edits of the prompt's own pass carry and the pipeline does not
            evaluate, by condition.
        scaled: from samples to what the pipeline makes of them for its denoiser.

    Attributes:
        whole: the prompt's whole answer, where it has more than the samples (learned variances, a picture), or None.
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
        part: tuple[slice, ...],
        keys: Keys,
        random: Mapping[str, Draw],
        perturb: Callable[[nn.Module, Perturbation, Sequence[torch.Generator]], AbstractContextManager[None]],
        answered: Mapping[str, Tensor] | None = None,
        prepared: Prepared | None = None,
        ahead: tuple[Keys, ...] = (),
        whole: Tensor | None = None,
        fixed: bool = False,
        seconds: Mapping[str, Second] | None = None,
        texts: Mapping[str, Mapping[str, Any]] | None = None,
        scaled: Callable[[Tensor], Tensor] = lambda x: x,
    ) -> None:
        self.branches, self.batch, self.extra = branches, batch, dict(extra)
        self.family, self.row_names = family, (family.sample, *family.rows)
        self.conditions = (*branches, *(name for name in extra if name not in branches), *random)
        self.aliases, self.parameterization = aliases, parameterization
        self.part = (slice(None), *part)
        self.keys, self.random, self.perturb = keys, random, perturb
        self.perturbations = PERTURBATIONS
        self.together = len(set(map(id, branches.values()))) == 1
        self.answered, self.prepared = answered or {}, prepared or Prepared()
        self.ahead = ahead or (keys,)
        self.whole = whole
        self.always = tuple(map(Query, branches)) if fixed else ()
        self.seconds = seconds or {}
        self.models = ("main", *self.seconds)
        self.texts, self.edits = texts or {}, EDITS
        self.scaled, self.differentiable = scaled, True

    @property
    def cached(self) -> int:
        """Rows of this evaluation's calls that a feature cache answered."""
        caches = self.branches["positive"].caches
        return 0 if caches is None else caches.cached

    def resolve(self, query: Query) -> Query:
        """The query under the name that this network has for it.

        Raises:
            QueryError: the network cannot answer it.
            UnsupportedPipelineError: the rows of a call are the pipeline's, and this query would add some.
        """
        found = super().resolve(query)
        if (second := self.seconds.get(found.model)) and second.perturbation is not None:
            if found.perturbation is not None:
                raise QueryError(
                    f"{str(query)!r} is perturbed, and so is the network {found.model!r}: {second.perturbation}; one "
                    "call has one perturbation"
                )
            found = replace(found, model="main", perturbation=second.perturbation)
        if self.always and replace(found, grad=False) not in self.always:
            raise UnsupportedPipelineError(
                f"rows='pipeline' evaluates what the pipeline does by itself, {', '.join(self.branches)}, and "
                f"{str(query)!r} was asked for; leave rows='pipeline' out, or the rule that asks"
            )
        return found

    def elsewhere(self, query: Query) -> bool:
        """Return whether a query is answered by another module than the pipeline's denoiser."""
        second, denoiser = self.seconds.get(query.model), self._branch(query).module
        return second is not None and second.of(denoiser) is not denoiser

    def fit(self) -> dict[str, Mapping[str, Any]]:
        """Bring the further conditions to the type and device of the pipeline's own.

        Returns:
            The conditions, as `extra` takes them.

        Raises:
            InputError: one has another shape than the pipeline's own.
        """
        for condition, rows in self.extra.items():
            own = self.branches[self._like(condition)].arguments
            whole = self.family.completed(self.branches["positive"].arguments, rows)
            for name, value in whole.items():
                self._check_shape(condition, name, value, look_up(own, name))
            self.extra[condition] = {name: matching(value, look_up(own, name)) for name, value in rows.items()}
        return dict(self.extra)

    def _check_shape(self, condition: str, name: str, value: Any, own: Any) -> None:
        if not isinstance(value, Tensor) or not isinstance(own, Tensor):
            return  # a list has rows of any length
        axis = self.family.axes.get(name, 0)
        shapes = [[*one.shape[:axis], *one.shape[axis + 1 :]] for one in (value, own)]
        if self.family.sequential and "txt_ids" not in self.branches["positive"].arguments:
            shapes = [shape[1:] for shape in shapes]  # a call of its own, with as many tokens as it likes
        if shapes[0] != shapes[1]:
            what = "null_embeds" if condition == "null" else "the embeddings of all negatives"
            raise InputError(
                f"{condition!r} has {name} of shape {shapes[0]}, and the pipeline's own has {shapes[1]}: all prompts "
                f"of a call have as many tokens; give {what} with as many as the embeddings of the prompt"
            )

    def tracked(self, x: Tensor) -> Tensor:
        """`x` as a leaf to which the denoiser's answers lead: what it is given is made of x anew.

        Raises:
            UnsupportedPipelineError: gradients cannot go through the denoiser.
        """
        leaf = x.detach().requires_grad_()
        given = self.scaled(leaf)
        for branch in {id(one): one for one in self.branches.values()}.values():
            check_backward(branch.module)
            branch.track(self.part, given - given.detach(), self.batch)
        self.answered = {}
        return leaf

    def run(self, requests: Sequence[Request]) -> list[Tensor]:
        """Answer requests of one perturbation by one call of the denoiser."""
        first = requests[0].query
        perturbation, denoiser = first.perturbation, self._branch(first).module
        if perturbation is None:
            return self._run(requests)
        second = self.seconds.get(first.model)
        generators = [
            generator
            for r in requests
            for generator in self.keys.generators(
                range(self.batch) if r.rows is None else r.rows, f"{perturbation.kind} {r.query.condition}"
            )
        ]
        with self.perturb(second.of(denoiser) if second else denoiser, perturbation, generators):
            return self._run(requests)

    def _branch(self, query: Query) -> Branch:
        """The call of the pipeline that a query is answered in."""
        return self.branches.get(query.condition, self.branches["positive"])

    def _run(self, requests: Sequence[Request]) -> list[Tensor]:
        outputs = self.native(requests)
        samples = [output[self.part] for output in outputs]
        for request, output, sample in zip(requests, outputs, samples, strict=True):
            if output.shape != sample.shape and replace(request.query, edits=(), grad=False) == POSITIVE:
                self._keep(output.detach(), request.rows)
        return samples

    def _keep(self, answer: Tensor, rows: tuple[int, ...] | None) -> None:
        """Keep the prompt's whole answer, which comes in pieces under `max_rows`."""
        if rows is not None:
            before = answer.new_empty((self.batch, *answer.shape[1:])) if self.whole is None else self.whole
            answer = before.index_copy(0, sent(rows, answer.device), answer)
        self.whole = answer

    def completed(self, samples: Tensor) -> Tensor:
        """The denoiser's answer with `samples` in it; the rest of it (learned variances, a picture) is the prompt's."""
        if self.whole is None:
            return samples
        answer = self.whole.clone()
        answer[self.part] = samples
        return answer

    def native(self, requests: Sequence[Request]) -> list[Tensor]:
        """The denoiser's whole answer to each request, with what is no part of the samples."""
        first = requests[0].query
        if first.edits:
            return self._edited(requests)
        plain = first.model not in self.seconds and first.perturbation is None
        if plain and len(requests) == 1 and first.condition in self.answered:
            answer = self.answered[first.condition]
            return [answer if requests[0].rows is None else answer[self.prepared.rows(requests[0].rows, answer.device)]]
        return self._called(requests, own=plain)

    def _called(self, requests: Sequence[Request], own: bool, beside: Sequence[Chosen] = ()) -> list[Tensor]:
        """The denoiser's whole answer to each request, by one call.

        Args:
            requests: what is asked.
            own: whether a call with the pipeline's own arguments is the pipeline's own.
            beside: rows that stand in the call behind those that are asked for.
        """
        branch, second = self._branch(requests[0].query), self.seconds.get(requests[0].query.model)
        if all(request.rows is None for request in requests) and not beside:
            whole = tuple(name for name, one in self.branches.items() if one is branch)
            if tuple(request.query.condition for request in requests) == whole:
                answer = branch.call(branch.arguments, requests, own=own, second=second)
                return list(answer.chunk(len(requests)))
        chosen = [(request.rows, *self._sources(request)) for request in requests]
        arguments = self._put_together(branch, [*chosen, *beside])
        counts = [len(self._samples(request)) for request in requests]
        drawn = any(request.query.condition in self.random for request in requests)
        answer = branch.call(arguments, requests, own=False, drawn=drawn, second=second)
        return list(torch.split(answer[: sum(counts)], counts))

    def _samples(self, request: Request) -> Sequence[int]:
        """The samples of a request's rows."""
        return range(self.batch) if request.rows is None else request.rows

    def _put_together(self, branch: Branch, chosen: Sequence[Chosen]) -> dict[str, Any]:
        """The arguments of a call with chosen rows."""
        arguments = dict(branch.arguments)
        for name in self.row_names:
            value = self._joined(name, chosen)
            # Masks may be None for prompts of one length, and not for others.
            if value is not None or look_up(arguments, name) is not None:
                put(arguments, name, value)
        return arguments

    def _edited(self, requests: Sequence[Request]) -> list[Tensor]:
        """The denoiser's whole answer to each request, with its passes edited.

        Raises:
            UnsupportedPipelineError: the call is of a form that the edit does not know.
        """
        first = requests[0]
        edits, perturbation, branch = first.query.edits, first.query.perturbation, self._branch(first.query)
        second = self.seconds.get(first.query.model)
        module = branch.module if second is None else second.of(branch.module)
        found = self.prepared.architecture(module)
        texts = {edit.text for edit in edits if edit.text}  # then the prompt alone is asked
        beside: list[Chosen] = []
        others: dict[str, Carried] = {}
        if texts and joint(found):
            if perturbation is not None:
                raise UnsupportedPipelineError(
                    f"{edits[0]} and {perturbation} both change the one attention of "
                    f"{type(module).__name__} to text and picture; keep one of the two"
                )
            beside = [(first.rows, "positive", self._words(text)) for text in texts]
        else:
            others = {text: _at(self._carried(text, branch, found), first.rows) for text in texts}
        samples = tuple(sample for request in requests for sample in self._samples(request))
        whole = samples == tuple(range(self.batch))
        tensors = {
            edit: value if whole else value[self.prepared.rows(samples, value.device)]
            for edit, value in first.carried.items()
        }
        with own_pass(module, edits, len(samples), others, found, tensors, perturbation):
            return self._called(requests, own=False, beside=beside)

    def _words(self, text: str) -> dict[str, Any]:
        """Return the row arguments of a carried text; its pooled embedding is the prompt's."""
        condition = self.aliases.get(text, text)
        if condition in self.branches:
            names = [name for name in self.family.embeds.values() if name]
            rows = {name: self._taken(name, None, condition, {}) for name in names}
        else:
            rows = dict(self.family.completed(self.branches["positive"].arguments, self.texts[text]))
        own = self.branches["positive"].arguments
        found = {}
        for name, value in rows.items():
            if isinstance(value, Tensor) and value.ndim == 2 and value.is_floating_point():
                continue
            wanted, axis = look_up(own, name), self.family.axes.get(name, 0)
            if (
                isinstance(value, Tensor)
                and isinstance(wanted, Tensor)
                and value.shape[axis + 1] != wanted.shape[axis + 1]
            ):
                raise InputError(
                    f"the negative text has {name} of {value.shape[axis + 1]} tokens and the prompt of "
                    f"{wanted.shape[axis + 1]}: attention that carries it takes texts of one length; give embeddings "
                    "of one length"
                )
            found[name] = matching(value, wanted)
        return found

    def _carried(self, text: str, branch: Branch, found: Architecture) -> Carried:
        """Return the cross-attention's inputs for a carried text, which are found once a run."""
        key = branch.module, text
        if key not in self.prepared.carried:
            condition = self.aliases.get(text, text)
            extra = {} if condition in self.branches else {**self.texts[text], **self._words(text)}
            chosen: Chosen = (None, condition if condition in self.branches else self._like(text), extra)
            arguments = self._put_together(branch, [chosen])
            asked = [Request(Query(text), None)]
            self.prepared.carried[key] = carried(found, lambda: branch.call(arguments, asked, own=False, drawn=True))
        return self.prepared.carried[key]

    def _joined(self, name: str, chosen: Sequence[Chosen]) -> Any:
        """The rows of one argument for all requests of a call."""
        rows = [self._taken(name, *one) for one in chosen]
        return self.family.pack(join(rows)) if name == self.family.sample else join(rows, *self._how(name))

    def _like(self, condition: str) -> str:
        """The evaluated condition that has what another prompt does not say: adapters' pictures, sizes, residuals."""
        if condition.partition(":")[0] in ("null", "negative"):
            # As the pipeline would do for that text; an editing pipeline's negative beside an "image" has no picture.
            return next((name for name in ("image", "null", "negative") if name in self.branches), "positive")
        return "positive"

    def _sources(self, request: Request) -> tuple[str, Mapping[str, Any]]:
        """Return the sources of a request's rows: the evaluated condition, and another prompt's rows in its place."""
        condition = request.query.condition
        if condition in self.branches:
            return condition, {}
        if condition in self.random and condition not in self.extra:
            self.extra[condition] = self._drawn(condition)
        extra = self.family.completed(self.branches["positive"].arguments, self.extra[condition])
        return self._like(condition), extra

    def _drawn(self, condition: str) -> Mapping[str, Any]:
        """A random condition of this evaluation; of texts also those of the next ones, through the encoder together."""
        now, known = (condition, self.keys), self.prepared.drawn
        if now not in known:
            known.clear()
            together = self.ahead if condition == TEXTS else (self.keys,)
            prompt = {name: self._taken(name, None, "positive", {}) for name in self.row_names}
            wide = {name: join([value] * len(together), *self._how(name)) for name, value in prompt.items()}
            generators = [one for keys in together for one in keys.generators(range(self.batch), condition)]
            drawn = self.random[condition](wide, generators)
            for place, keys in enumerate(together):
                index = slice(place * self.batch, (place + 1) * self.batch)
                known[condition, keys] = {name: take(value, index, *self._how(name)) for name, value in drawn.items()}
        return known[now]

    def _how(self, name: str) -> tuple[int, bool]:
        """The axis of an argument's rows, and whether it is a list with an entry a row."""
        return self.family.axes.get(name, 0), name in self.family.listed

    def _taken(self, name: str, rows: tuple[int, ...] | None, like: str, extra: Mapping[str, Any]) -> Any:
        """The rows of one argument for one request."""
        axis, listed = self._how(name)
        branch = self.branches[like]
        if name in extra:
            start, value = 0, extra[name]
            if value is not None and (len(value) if listed else value.shape[axis]) == 1 < self.batch:
                value = list(value) * self.batch if listed else value.repeat_interleave(self.batch, axis)
        else:
            value = branch.whole(name)
            start = [one for one, other in self.branches.items() if other is branch].index(like) * self.batch
        rows = tuple(range(self.batch)) if rows is None else rows
        index: Index = slice(start + rows[0], start + rows[-1] + 1)  # a view, where it can be one
        if rows != tuple(range(rows[0], rows[-1] + 1)):
            index = self.prepared.rows(tuple(start + row for row in rows), branch.sample.device)
        return take(value, index, axis, listed)


def _at(whole: Carried, rows: tuple[int, ...] | None) -> Carried:
    """Take some rows of a cross-attention's inputs."""

    def taken(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return type(value)(map(taken, value))
        return value if value is None or rows is None else value[sent(rows, value.device)]

    return Carried(taken(whole.text), taken(whole.mask))
