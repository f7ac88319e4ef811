"""A network whose answers another program's loop has computed already."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from torch import Tensor

from ..guidance.prediction import Parameterization
from ..guidance.query import Network, Query, Request, sent
from ..guidance.report import StepRecord

ALIASES = {"negative:0": "negative"}
"""A loop that has one negative prompt, or the empty one in its place, calls both by one name."""


def ordered(queries: Sequence[Query]) -> list[Query]:
    """Queries in the order in which a loop evaluates them: the prompt, what it has beside it, then further ones."""
    first = {"positive": 0, "negative": 1}
    return sorted(set(queries), key=lambda query: (bool(query.perturbation), first.get(query.condition, 2), str(query)))


class Answered(Network):
    """A network whose answers to all queries have been computed already, by another program's loop.

    Args:
        answers: the native output for each query that may be asked, shape ``(B, ...)``.
        conditions: the names of the conditions that it has answers for.
        parameterization: what the outputs are.
        perturbations: the kinds of perturbations that queries may have.
    """

    def __init__(
        self,
        answers: Mapping[Query, Tensor],
        conditions: Sequence[str],
        parameterization: Parameterization,
        perturbations: frozenset[str] = frozenset(),
    ) -> None:
        self.answers, self.parameterization, self.perturbations = answers, parameterization, perturbations
        self.conditions, self.aliases = conditions, ALIASES

    def run(self, requests: Sequence[Request]) -> list[Tensor]:
        """Return the rows of the requests out of the stored answers."""
        found = []
        for request in requests:
            answer = self.answers[request.query]
            found.append(answer if request.rows is None else answer[sent(request.rows, answer.device)])
        return found

    def accounted(self, record: StepRecord) -> StepRecord:
        """Return a step's record with the loop's own count: one call for each query, of the whole batch."""
        batch = len(next(iter(self.answers.values())))
        everyone = tuple(range(batch))
        return dataclasses.replace(
            record,
            queries=dict.fromkeys(self.answers, everyone),
            calls=len(self.answers),
            rows=len(self.answers) * batch,
        )
