"""The arithmetic of rules: compiled it gives the same numbers, and sums in half precision are taken in float32."""

from __future__ import annotations

import os
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from guidestack import parse
from guidestack.guidance.per_sample import ratio
from guidestack.guidance.prediction import EPSILON, Level, Prediction
from guidestack.guidance.query import POSITIVE, Predictions, Query
from guidestack.guidance.rule import Estimate, Run, State, Step

SHAPE = (2, 4, 8, 8)
LEVEL = Level.ve(2.0)
STACKS = (
    "cfg(4)",
    "cfg(4) | rescale(0.7)",
    "cfg(4) | renorm()",
    "apg(4)",
    "apg(4, radius=2, momentum=-0.5)",
    "cfgpp(0.6)",
    "perpneg(4)",
)


def answers(dtype: torch.dtype = torch.float32, offset: float = 0.0) -> dict[Query, Tensor]:
    generator = torch.Generator().manual_seed(0)
    names = ("positive", "negative", "null", "negative:0")
    return {Query(name): (offset + torch.randn(SHAPE, generator=generator)).to(dtype) for name in names}


class Updating:
    """The update of a stack, as a function of tensors."""

    def __init__(self, text: str, dtype: torch.dtype = torch.float32) -> None:
        self.rule = parse(text)
        run = Run(SHAPE, dtype=dtype, steps=4, seeds=(0, 1), negatives=(1, 1))
        self.step, self.state = Step(run, 1, LEVEL, step_level=LEVEL, time=0.5), self.rule.init(run)

    def __call__(self, x: Tensor, native: Mapping[Query, Tensor], state: State) -> tuple[Tensor, State]:
        read = {query: Prediction(value, x, LEVEL, EPSILON) for query, value in native.items()}
        predictions = Predictions(read, {query: query for query in read}, read[POSITIVE])
        estimate, state = self.rule.update(Estimate(read[POSITIVE]), predictions, self.step, state)
        return estimate.prediction.native, state


def flat(state: State) -> list[Tensor]:
    return [one for item in state for one in (flat(item) if isinstance(item, tuple) else [item])]


@pytest.mark.parametrize("text", STACKS)
def test_compiled_arithmetic_gives_the_same_numbers(text: str) -> None:
    """In one graph, without a break: nothing in an update asks a tensor for its value."""
    torch.compiler.reset()
    eager = Updating(text)
    graph = torch.compile(eager, backend="aot_eager", fullgraph=True)
    x, state, same = torch.ones(SHAPE), eager.state, eager.state
    for shift in (0.0, 0.5):  # the second time with a state that has something in it
        native = answers(offset=shift)
        expected, state = eager(x, native, state)
        found, same = graph(x, native, same)
        assert torch.equal(found, expected)
        assert all(torch.equal(one, other) for one, other in zip(flat(same), flat(state), strict=True))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(os.name == "nt", reason="needs a C++ compiler")
@pytest.mark.parametrize("text", ["cfg(4) | rescale(0.7)", "apg(4, radius=2, momentum=-0.5)"])
def test_fused_arithmetic_gives_the_same_numbers_to_rounding(text: str) -> None:
    torch.compiler.reset()
    eager = Updating(text)
    x, native = torch.ones(SHAPE), answers()
    found, _ = torch.compile(eager, backend="inductor", fullgraph=True)(x, native, eager.state)
    torch.testing.assert_close(found, eager(x, native, eager.state)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("text", ["apg(4)", "apg(4, radius=2, momentum=-0.5)", "perpneg(4)"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_projections_of_half_precision_are_those_of_float32_rounded_once(text: str, dtype: torch.dtype) -> None:
    half = answers(dtype, offset=3.0)
    x = torch.ones(SHAPE, dtype=dtype)
    found, _ = (one := Updating(text, dtype))(x, half, one.state)
    wide = {query: value.float() for query, value in half.items()}
    expected, _ = (other := Updating(text))(x.float(), wide, other.state)
    assert torch.equal(found, expected.to(dtype))


def test_a_ratio_to_nothing_is_nothing() -> None:
    found = ratio(torch.tensor([1.0, 1.0, 0.0, -3.0]), torch.tensor([2.0, 0.0, 0.0, -0.0]))
    assert torch.equal(found, torch.tensor([0.5, 0.0, 0.0, 0.0]))
