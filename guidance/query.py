"""Queries, the questions of rules to networks, and their evaluation: each once, in as few calls as memory allows.

A rule never calls a network. It names *queries*; `evaluate` unites those of the whole stack, groups what one call of
one network can answer, leaves out the samples that nobody asked for, and counts what it did.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from .errors import QueryError, RuleError, nearest, shown
from .fields import LARGEST, is_number
from .prediction import Level, Parameterization, Prediction

RowMask = Tensor
"""Which samples a query is wanted for: booleans of shape ``(B,)``. ``None`` in its place means all of them."""
Queries = Mapping["Query", RowMask | None]


@dataclass(frozen=True)
class Perturbation:
    """An edit of the network for one evaluation, e.g. noise on its time embedding. Tensor-free and hashable.

    Args:
        kind: what is edited; a network lists the kinds it can do. A pipeline's networks can do these:

            * ``"time"``: noise is added to the embedding of the time, ``"conditioning"``: to its sum with those of the
              class or the pooled text; `amount` is the noise's standard deviation in those of the embedding;
            * ``"shift"``: the network gets another time, to which `amount` is added, in steps of 1000;
            * ``"identity"``: in self-attention each token of the picture attends to itself alone, and to the text where
              text and picture share it;
            * ``"blur"``: the queries of self-attention are blurred over the picture; `amount` is the Gaussian's
              standard deviation in tokens, infinity for the mean;
            * ``"skip"``: blocks are left out;
            * ``"drop"``: blocks that are drawn for each sample are left out; `amount` is their share;
            * ``"shuffle"``: the picture's tokens come to each block in a random order, drawn for each sample.
        amount: how much, in the unit of `kind`; 1 where it has none.
        blocks: where. A text names blocks with commas between them, as `guidestack doctor` prints them: ``"mid"``,
            ``"7,8,9"``; ``"middle"`` is the block in the middle of any network. 0 is the place that a kind has by
            itself: all blocks for the time and for drawn ones, a UNet's encoder for shuffled tokens, else the middle.
            For the two kinds of noise a number is the first so many blocks (of a UNet's encoder and of its decoder).
    """

    kind: str
    amount: float = 1.0
    blocks: int | str = 0

    def __str__(self) -> str:
        rounded = f"{self.amount:.4g}"
        amount = rounded if float(rounded) == self.amount else repr(self.amount)
        return f"{self.kind}({amount}{f', blocks={self.blocks!r}' if self.blocks else ''})"


@dataclass(frozen=True)
class PromptEdit:
    """An edit of the prompt's own pass: of what the network answers to ``"positive"``. Tensor-free and hashable.

    Args:
        kind: what is edited, by the name of its rule; a network lists the kinds it can do.
        values: the numbers of that kind.
        blocks: in which blocks of the network, as in `Perturbation`; "" for those that the kind means by itself.
        text: the condition whose text is carried into the attention beside the prompt's, or "".
        shared: whether the passes of all conditions and of all networks are edited, and not the prompt's own alone.
    """

    kind: str
    values: tuple[float, ...] = ()
    blocks: str = ""
    text: str = ""
    shared: bool = False

    def __str__(self) -> str:
        return f"{self.kind}({', '.join([*(f'{one:g}' for one in self.values), *([self.blocks] * bool(self.blocks))])})"


Edits = Mapping[PromptEdit, Tensor | None]
"""Edits of one evaluation, each with the tensor that it carries into the network, a row for each sample, or None."""


@dataclass(frozen=True)
class Query:
    """One question to a network: a condition, a network and an edit. Equal queries are evaluated once.

    A query is hashable and holds no tensors.

    Args:
        condition: the network's condition by name. ``"positive"`` is the prompt; ``"negative"`` the negative prompt, or
            the empty one where none is given (what classifier-free guidance contrasts with); ``"null"`` the true empty
            prompt, the same whatever the negative one is; ``"negative:0"`` the first of several negatives,
            ``"positive:1"`` the first positive beside the prompt; ``"independent:tokens"`` a random condition, drawn
            anew at every evaluation. The side that owns the network resolves it.
        model: ``"main"``, or the name of another network of the run.
        perturbation: a change made to the network, or None.
        grad: whether the answer must be differentiable with respect to x.
        edits: of the prompt's own pass. The run puts them into what rules ask; rules ask without.

    Cost: one network evaluation for each sample that wants it.

    >>> str(Query("negative:0", model="weak")), Query.of("null@weak")
    ('negative:0@weak', Query(condition='null', model='weak', perturbation=None, grad=False))
    """

    condition: str = "positive"
    model: str = "main"
    perturbation: Perturbation | None = None
    grad: bool = False
    edits: tuple[PromptEdit, ...] = field(default=(), repr=False)

    def __hash__(self) -> int:
        return hash(self.condition)  # tells the queries of a run apart, and is at hand: a step looks up dozens

    def __str__(self) -> str:
        text = self.condition if self.model == "main" else f"{self.condition}@{self.model}"
        if self.perturbation:
            text += f"+{self.perturbation}"
        grad = "+grad" if self.grad else ""
        return f"{text}{grad}{''.join(f'[{one}]' for one in self.edits)}"

    @classmethod
    def of(cls, text: str | Query) -> Query:
        """Read a query from its text; return a query as it is.

        The text is what `str` writes: ``"condition"`` or ``"condition@model"``, then optionally a perturbation,
        ``"positive+time(1.5)"``, and ``"+grad"``.

        Raises:
            RuleError: the text has another form.
        """
        if isinstance(text, Query):
            return text
        match = _QUERY.fullmatch(text) if isinstance(text, str) and len(text) <= LONGEST else None
        if not match or math.isinf(float(match["amount"] or 0)) != (match["amount"] == "inf"):
            raise RuleError(
                "a query is written 'condition', 'condition@model' or 'condition+perturbation(amount)', such as "
                f"'null', 'positive@weak' or 'positive+time(1)', in {LONGEST} characters at most; got {shown(text)}"
            )
        perturbation = None
        if match["kind"]:
            amount, first = float(match["amount"]), float(match["first"] or 0)
            if not (is_number(amount) or math.isinf(amount)) or not is_number(first):
                raise RuleError(f"a query's numbers are at most {LARGEST:g}; got {shown(text)}")
            perturbation = Perturbation(match["kind"], amount, match["names"] or int(first))
        return cls(match["condition"], match["model"] or "main", perturbation, bool(match["grad"]))


LONGEST = 200  # characters of a query's text
_QUERY = re.compile(
    r"(?P<condition>[A-Za-z_]\w*(:\w+)?)(@(?P<model>[A-Za-z_]\w*))?"
    r"(\+(?P<kind>[A-Za-z_]\w*)\((?P<amount>\d+(\.\d*)?(e[-+]?\d+)?|inf)"
    r"(, blocks=((?P<first>\d+)|'(?P<names>[\w.]+(,[\w.]+)*)'))?\))?"
    r"(?P<grad>\+grad)?"
)


ANY = ":each"
"""In `Rule.asks`, ``"negative:each"`` stands for as many negatives as the run has."""


def covered(query: Query, asked: Iterable[Query]) -> bool:
    """Return whether a rule that declares `asked` may ask `query`, whatever its number and amount of perturbation."""

    def general(one: Query) -> Query:
        perturbation = replace(one.perturbation, amount=1.0) if one.perturbation else None
        return replace(one, condition=re.sub(r":\d+$", ANY, one.condition), perturbation=perturbation)

    return query in (asked := set(asked)) or general(query) in set(map(general, asked))


POSITIVE = Query("positive")
NEGATIVE = Query("negative")
NULL = Query("null")


class Predictions(Mapping[Query, Prediction]):
    """The answers a rule may read: those it asked for, and no others.

    Rows that a rule did not ask for read as the base prediction, so that a contrast with them is zero there, even when
    another rule of the stack had them evaluated: what a rule computes does not depend on its neighbours.
    """

    def __init__(
        self,
        answers: Mapping[Query, Prediction],
        aliases: Mapping[Query, Query],
        base: Prediction,
        asker: object = "the run",
        reads: set[Query] | None = None,
    ) -> None:
        self._answers, self._aliases, self._base, self._asker = answers, aliases, base, asker
        self._reads = reads  # where to note what is read: for `check_rule`

    def __getitem__(self, query: Query) -> Prediction:
        if self._reads is not None:
            self._reads.add(query)
        return self._answer(query)

    def _answer(self, query: Query) -> Prediction:
        try:
            return self._answers[self._aliases[query]]
        except KeyError:
            asked = ", ".join(sorted(map(str, self._aliases))) or "nothing"
            raise QueryError(f"{self._asker} reads {str(query)!r} but asked for {asked} at this step") from None

    def detached(self) -> Predictions:
        """Return the answers without their graph of gradients."""
        answers = {query: answer.detached() for query, answer in self._answers.items()}
        return Predictions(answers, self._aliases, self._base.detached(), self._asker, self._reads)

    def __iter__(self) -> Iterator[Query]:
        return iter(self._aliases)

    def __len__(self) -> int:
        return len(self._aliases)

    def named(self, query: Query) -> Prediction:
        """Return the answer to a query that is given by the network's own name for it."""
        return self._answers[query]

    def given(self, query: Query, answer: Prediction) -> Predictions:
        """A copy of these answers in which `query` has the answer `answer`, whether it was asked for or not."""
        answers = {**{self._aliases[one]: self._answer(one) for one in self._aliases}, query: answer}
        return Predictions(answers, {**self._aliases, query: query}, self._base, self._asker, self._reads)

    def only(self, queries: Queries, asker: object) -> Predictions:
        """The part of the answers that `queries` asks for, for the rule that error messages call `asker`."""
        answers = {}
        for query, rows in queries.items():
            answer = self._answer(query)
            if rows is not None and answer is not self._base:
                answer = answer.where(rows, self._base)
            answers[query] = answer
        return Predictions(answers, {query: query for query in queries}, self._base, asker, self._reads)


@dataclass(frozen=True)
class Request:
    """Rows of one query that one network call is to answer.

    Args:
        query: what is asked.
        rows: sample indices; None means all in order.
        carried: the tensors that the query's edits carry, with a row for each sample of the batch.
    """

    query: Query
    rows: tuple[int, ...] | None
    carried: Mapping[PromptEdit, Tensor] = field(default_factory=dict, compare=False)


class Network(ABC):
    """Base class of networks that answer queries: an object for one batch at one level, made by the network's owner.

    Attributes:
        parameterization: what the network emits.
        conditions: the conditions it can answer, in the order of their rows in one batch. The order is part of the
            result: the last bit of a matrix product can depend on it.
        aliases: other names for some of them, e.g. ``{"negative": "null"}`` where no negative prompt was given.
        models: names of the networks at hand.
        perturbations: the kinds of `Perturbation` it can do.
        edits: the kinds of `PromptEdit` it can do.
        differentiable: whether its answers can carry gradients with respect to x.
        together: whether one call can answer several conditions.
        always: queries that every evaluation has for all samples, asked for or not.
        cached: rows of this evaluation's calls that the network answered from a feature cache, in part at least.
    """

    parameterization: Parameterization
    conditions: Sequence[str] = ("positive",)
    aliases: Mapping[str, str] = {}
    models: Sequence[str] = ("main",)
    perturbations: frozenset[str] = frozenset()
    edits: frozenset[str] = frozenset()
    differentiable: bool = False
    together: bool = True
    always: Sequence[Query] = ()

    @property
    def cached(self) -> int:
        """Rows of this evaluation's calls that a feature cache answered, in part at least; 0 without such caches."""
        return 0

    def tracked(self, x: Tensor) -> Tensor:
        """Return `x` as a leaf of autograd: later answers to queries with gradients are computed from it.

        Raises:
            QueryError: the network gives no gradients.
        """
        raise QueryError(f"{type(self).__name__} gives no gradients, and they were asked for")

    @abstractmethod
    def run(self, requests: Sequence[Request]) -> list[Tensor]:
        """Answer requests of one model, perturbation, edits and grad (and condition, if not `together`) in one call.

        Returns:
            One native output for each request, its rows in the order of the request's.
        """

    def resolve(self, query: Query) -> Query:
        """The query under the name that this network has for it.

        Raises:
            QueryError: the network cannot answer it.
        """
        condition = self.aliases.get(query.condition, query.condition)
        for what, name, known in (
            ("condition", condition, self.conditions),
            ("model", query.model, self.models),
            ("perturbation", query.perturbation.kind if query.perturbation else None, self.perturbations),
            *(("edit", edit.kind, self.edits) for edit in query.edits),
        ):
            if name is not None and name not in known:
                raise QueryError(f"nothing here answers {str(query)!r}: unknown {what} {name!r}{nearest(name, known)}")
        if query.grad and not self.differentiable:
            raise QueryError(f"nothing here answers {str(query)!r}: this network gives no gradients")
        return query if condition == query.condition else replace(query, condition=condition)


@dataclass(frozen=True)
class Evaluation:
    """The result of `evaluate`: the answers, and what they cost.

    Attributes:
        predictions: every query, answered for all samples.
        asked: each query as the network knows it, with the rows that were evaluated (None: all).
        calls: network calls.
        rows: rows over all calls: network evaluations, summed over the samples.
        cached: those of them that a feature cache answered, in part at least.
    """

    predictions: Predictions
    asked: Mapping[Query, tuple[int, ...] | None]
    calls: int
    rows: int
    batch: int
    cached: int = 0

    @property
    def complete(self) -> dict[Query, Prediction]:
        """The answers that all samples have, each under the name that the network has for its query."""
        return {query: self.predictions.named(query) for query, rows in self.asked.items() if rows is None}


def with_edits(query: Query, edits: Iterable[PromptEdit]) -> Query:
    """The query as a network is asked it where passes are edited."""
    own = query.condition == "positive" and query.model == "main"
    found = tuple(edit for edit in edits if own or edit.shared)
    return replace(query, edits=found) if found else query


def united(queries: Iterable[Queries]) -> dict[Query, RowMask | None]:
    """One mapping that asks for everything any of `queries` asks for."""
    union: dict[Query, RowMask | None] = {}
    for asked in queries:
        for query, rows in asked.items():
            if query in union and rows is not None:
                before = union[query]
                rows = None if before is None else before | rows
            union[query] = rows
    return union


def _rows(mask: RowMask | None, batch: int) -> tuple[int, ...] | None:
    # The only place where the host waits for a device: which rows to send cannot be known without the mask's values.
    if mask is None:
        return None
    if mask.dtype != torch.bool or mask.shape != (batch,):
        raise QueryError(f"a row mask has type bool and shape ({batch},), got {mask.dtype} {tuple(mask.shape)}")
    rows = tuple(mask.nonzero().flatten().tolist())
    return None if len(rows) == batch else rows


def _pieces(requests: Sequence[Request], batch: int, max_rows: int | None) -> Iterator[list[Request]]:
    """Cut requests into calls of at most `max_rows` rows, in order."""
    if max_rows is None or sum(batch if r.rows is None else len(r.rows) for r in requests) <= max_rows:
        yield list(requests)
        return
    carried = requests[0].carried  # requests of one call have the same edits
    flat = [(r.query, sample) for r in requests for sample in (range(batch) if r.rows is None else r.rows)]
    for start in range(0, len(flat), max_rows):
        piece: dict[Query, list[int]] = {}
        for query, sample in flat[start : start + max_rows]:
            piece.setdefault(query, []).append(sample)
        yield [
            Request(query, None if len(samples) == batch else tuple(samples), carried)
            for query, samples in piece.items()
        ]


def evaluate(
    network: Network,
    queries: Queries,
    x: Tensor,
    level: Level,
    *,
    base: Query = POSITIVE,
    max_rows: int | None = None,
    unasked: RowMask | None = None,
    dtype: torch.dtype | None = None,
    edits: Edits | None = None,
    known: Mapping[Query, Prediction] | None = None,
    grad: bool = False,
) -> Evaluation:
    """Answer `queries`, and `base` for all samples that are not said to need none, at `x`.

    Args:
        network: the network that answers.
        queries: what is asked, each with the samples it is wanted for.
        x: the noisy samples, shape ``(B, ...)``.
        level: their level.
        base: the query whose answer is the unguided estimate; evaluated for every sample.
        max_rows: at most this many rows in one network call; None for no bound.
        unasked: samples that need no prediction at all; their rows of `base` read as NaN if no query asks for them.
        dtype: type of the network's outputs, for a call in which it is asked for nothing; that of x by default.
        edits: of the prompt's own pass, or of all: whoever asks is answered with them.
        known: answers for all samples at this very x and level, under the names that the network has for their queries;
            they are not evaluated again.
        grad: whether every answer is wanted with the graph of its gradients with respect to x, which is a new leaf
            then, the `x` of the predictions. Call it with gradients recorded.

    Returns:
        The answers and what they cost.

    Raises:
        QueryError: the network cannot answer a query, or a mask has another shape.

    Cost: one network call for each group of queries with the same model, perturbation and grad; more under `max_rows`.
    """
    batch = len(x)
    if max_rows is not None and max_rows < 1:
        raise QueryError(f"max_rows must be at least 1, got {max_rows!r}")
    edits = edits or {}
    aliases = {
        query: network.resolve(replace(with_edits(query, edits), grad=query.grad or grad)) for query in [base, *queries]
    }
    if any(query.grad for query in aliases.values()):
        x = network.tracked(x)
    everyone = None if unasked is None or not bool(unasked.any()) else ~unasked
    always = [replace(query, grad=query.grad or grad) for query in network.always]
    own: list[Queries] = [{aliases[base]: everyone}, dict.fromkeys(always)]
    wanted = united([*own, *({aliases[query]: rows} for query, rows in queries.items())])
    known = {query: answer for query, answer in (known or {}).items() if query in wanted}
    asked = {query: _rows(rows, batch) for query, rows in wanted.items() if query not in known}

    groups: dict[tuple[object, ...], list[Request]] = {}
    # In the network's own order of conditions, on which the last bit of a batched matrix product can depend.
    for query in sorted(asked, key=lambda query: network.conditions.index(query.condition)):
        if asked[query] != ():
            apart = None if network.together else query.condition
            group = (query.model, query.perturbation, query.edits, query.grad, apart)
            carried = {edit: value for edit in query.edits if (value := edits[edit]) is not None}
            groups.setdefault(group, []).append(Request(query, asked[query], carried))

    parts: dict[Query, list[tuple[tuple[int, ...] | None, Tensor]]] = {query: [] for query in asked}
    calls = rows_run = 0
    for requests in groups.values():
        for piece in _pieces(requests, batch, max_rows):
            for request, output in zip(piece, network.run(piece), strict=True):
                parts[request.query].append((request.rows, output))
                rows_run += len(output)
            calls += 1

    nothing: Tensor | None = None
    whole = {query: answer.native for query, answer in known.items()}
    if aliases[base] not in known:
        if asked[aliases[base]] is not None:
            kind = next((output.dtype for one in parts.values() for _, output in one), dtype or x.dtype)
            # NaN, so that it does not go unnoticed if a rule reads a row that nobody evaluated.
            nothing = torch.full_like(x, torch.nan, dtype=kind)
        whole[aliases[base]] = _assembled(parts[aliases[base]], nothing, batch)
    for query in asked:
        if query not in whole:
            whole[query] = _assembled(parts[query], whole[aliases[base]], batch)
    answers = {
        query: known.get(query) or Prediction(native, x, level, network.parameterization)
        for query, native in whole.items()
    }
    predictions = Predictions(answers, aliases, answers[aliases[base]])
    return Evaluation(predictions, asked, calls, rows_run, batch, network.cached)


def _assembled(parts: list[tuple[tuple[int, ...] | None, Tensor]], base: Tensor | None, batch: int) -> Tensor:
    """Put the pieces of one query back together; rows that nobody wanted are those of `base`."""
    if len(parts) == 1 and parts[0][0] is None:
        return parts[0][1]
    if not parts:
        assert base is not None  # the base query itself has rows or something in their place
        return base
    rows = tuple(row for some, _ in parts for row in some or ())
    together = torch.cat([output for _, output in parts]) if len(parts) > 1 else parts[0][1]
    if rows == tuple(range(batch)):
        return together
    assert base is not None  # a query that lacks rows is not the base, whose rows fill them
    return base.clone().index_copy_(0, sent(rows, together.device), together)


def sent(rows: Sequence[int], device: torch.device) -> Tensor:
    """Copy row numbers to `device` without waiting for it."""
    return torch.tensor(rows).to(device, non_blocking=True)
