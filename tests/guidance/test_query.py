"""evaluate: union, grouping, one batched call, row masks, counting."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from guidestack.guidance.errors import QueryError, RuleError
from guidestack.guidance.prediction import EPSILON, Level
from guidestack.guidance.query import NEGATIVE, POSITIVE, Network, Perturbation, Query, Request, evaluate, united

NULL, WEAK = Query("null"), Query("positive", model="weak")
X = torch.arange(3.0).reshape(3, 1)
LEVEL = Level.vp(0.5)


class Recording(Network):
    """Answers 100 * condition + sample, and remembers what it was asked."""

    parameterization = EPSILON
    conditions = ("negative", "null", "positive")
    models = ("main", "weak")
    perturbations = frozenset({"time"})

    def __init__(self) -> None:
        self.calls: list[list[Request]] = []

    def run(self, requests: Sequence[Request]) -> list[Tensor]:
        self.calls.append(list(requests))
        return [
            torch.tensor([[100.0 * self.conditions.index(r.query.condition) + s] for s in (r.rows or range(3))])
            + 1000 * (r.query.model == "weak")
            for r in requests
        ]


def mask(*samples: int) -> Tensor:
    return torch.tensor([sample in samples for sample in range(3)])


def test_equal_questions_are_asked_once_in_one_call_in_the_networks_order() -> None:
    network = Recording()
    done = evaluate(network, united([{POSITIVE: None, NULL: None}, {NULL: None}, {NEGATIVE: None}]), X, LEVEL)
    assert [[str(r.query) for r in call] for call in network.calls] == [["negative", "null", "positive"]]
    assert (done.calls, done.rows) == (1, 9)
    assert done.predictions[NULL].native.flatten().tolist() == [100, 101, 102]


def test_the_base_is_always_evaluated() -> None:
    network = Recording()
    done = evaluate(network, {}, X, LEVEL)
    assert (done.calls, done.rows) == (1, 3)


def test_aliases_are_one_question() -> None:
    network = Recording()
    network.conditions, network.aliases = ("null", "positive"), {"negative": "null"}
    done = evaluate(network, {NEGATIVE: None, NULL: None}, X, LEVEL)
    assert done.rows == 6
    assert done.predictions[NEGATIVE] is done.predictions[NULL]


def test_rows_nobody_wants_are_not_computed_and_read_as_the_base() -> None:
    network = Recording()
    done = evaluate(network, {NEGATIVE: mask(1)}, X, LEVEL)
    assert done.predictions[NEGATIVE].native.flatten().tolist() == [200, 1, 202]
    assert done.rows == 4
    assert network.calls[0][0].rows == (1,)
    assert evaluate(network, {NEGATIVE: mask()}, X, LEVEL).rows == 3
    assert evaluate(network, {NEGATIVE: mask(0, 1, 2)}, X, LEVEL).asked[NEGATIVE] is None


def test_masks_are_united_and_each_rule_sees_its_own() -> None:
    network = Recording()
    asked = united([{NEGATIVE: mask(0)}, {NEGATIVE: mask(2)}])
    done = evaluate(network, asked, X, LEVEL)
    assert done.rows == 5
    mine = done.predictions.only({NEGATIVE: mask(0)}, "mine")
    assert mine[NEGATIVE].native.flatten().tolist() == [0, 201, 202]  # sample 2 is the other rule's
    assert united([{NEGATIVE: mask(0)}, {NEGATIVE: None}]) == {NEGATIVE: None}
    assert united([{NEGATIVE: None}, {NEGATIVE: mask(0)}]) == {NEGATIVE: None}


def test_models_and_perturbations_are_calls_of_their_own() -> None:
    network = Recording()
    perturbed = Query("positive", perturbation=Perturbation("time", 0.5))
    done = evaluate(network, {NEGATIVE: None, WEAK: mask(1), perturbed: None}, X, LEVEL)
    assert (done.calls, done.rows) == (3, 10)
    assert done.predictions[WEAK].native.flatten().tolist() == [200, 1201, 202]


@pytest.mark.parametrize(("bound", "calls"), [(1, 6), (2, 3), (3, 2), (4, 2), (6, 1), (100, 1)])
def test_max_rows(bound: int, calls: int) -> None:
    network = Recording()
    done = evaluate(network, {NEGATIVE: None}, X, LEVEL, max_rows=bound)
    whole = evaluate(network, {NEGATIVE: None}, X, LEVEL)
    assert (done.calls, done.rows) == (calls, 6)
    for query in (POSITIVE, NEGATIVE):
        assert torch.equal(done.predictions[query].native, whole.predictions[query].native)
    masked = evaluate(network, {NEGATIVE: mask(0, 2)}, X, LEVEL, max_rows=bound)
    assert masked.predictions[NEGATIVE].native.flatten().tolist() == [0, 201, 2]


def test_what_cannot_be_answered_is_said() -> None:
    network = Recording()
    for query, message in (
        (Query("nul"), "unknown condition 'nul'; did you mean 'null'"),
        (Query("positive", model="week"), "unknown model 'week'; did you mean 'weak'"),
        (Query("positive", perturbation=Perturbation("tim")), "unknown perturbation 'tim'; did you mean 'time'"),
        (Query("positive", grad=True), "no gradients"),
    ):
        with pytest.raises(QueryError, match=message):
            evaluate(network, {query: None}, X, LEVEL)
    with pytest.raises(QueryError, match="max_rows"):
        evaluate(network, {}, X, LEVEL, max_rows=0)
    with pytest.raises(QueryError, match="row mask"):
        evaluate(network, {NEGATIVE: torch.tensor([True])}, X, LEVEL)
    done = evaluate(network, {NEGATIVE: None}, X, LEVEL)
    with pytest.raises(QueryError, match="mine reads 'negative' but asked for positive"):
        done.predictions.only({POSITIVE: None}, "mine")[NEGATIVE]


@pytest.mark.parametrize("text", ["", "a b", "a@", "@a", "a:b:c", 3, None])
def test_queries_are_read_strictly(text: object) -> None:
    with pytest.raises(RuleError, match="condition@model"):
        Query.of(text)  # type: ignore[arg-type]
