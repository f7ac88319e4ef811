"""The arithmetic of rules: the same numbers compiled, wide sums in half precision, no more than float32 can tell."""

from __future__ import annotations

import os
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from guidestack import APG, parse
from guidestack.guidance.notation.registry import rules
from guidestack.guidance.per_sample import ratio
from guidestack.guidance.prediction import EPSILON, SPACES, X0, Level, Prediction
from guidestack.guidance.query import NEGATIVE, POSITIVE, Predictions, Query
from guidestack.guidance.rule import objectives_of
from guidestack.guidance.step import Estimate, Run, State, Step

SHAPE = (2, 4, 8, 8)
LEVEL = Level.ve(2.0)


def answers(dtype: torch.dtype = torch.float32, offset: float = 0.0) -> dict[Query, Tensor]:
    generator = torch.Generator().manual_seed(0)
    names = ("positive", "negative", "null", "negative:0")
    return {Query(name): (offset + torch.randn(SHAPE, generator=generator)).to(dtype) for name in names}


EXAMPLES = [
    text
    for entry in rules()
    for text in entry.examples
    if entry.source is None
    and not text.startswith(("adaptive(", "linear_ag(", "schedule("))  # which are for more steps than there are here
    and not parse(text).own_pass  # which needs a network to edit
    and not objectives_of(parse(text))  # which need the gradients of a run
    and not any(part.couples for part in parse(text).parts())  # which need particles of one prompt
    and parse(text).asks() <= set(answers())
]
"""What there are answers for, of the examples of all rules."""
STACKS = (
    *EXAMPLES,
    "apg(4)",
    "cfg_zero(4, zero_steps=1)",
    "smc_cfg(4, switching='unit')",
    "cfg(6) | threshold(mimic=2)",
    "cfg(4) | momentum(0.5)",
    "ramp(cfg(4))",
    "perpneg(4)",
)


class Updating:
    """The update of a stack, as a function of tensors."""

    def __init__(self, text: str, dtype: torch.dtype = torch.float32) -> None:
        self.rule = parse(text)
        run = Run(SHAPE, dtype=dtype, steps=4, seeds=(0, 1), negatives=(1, 1))
        self.step, self.state = Step(run, 1, LEVEL, step_level=LEVEL, time=0.5), self.rule.init(run)

    def __call__(self, x: Tensor, native: Mapping[Query, Tensor], state: State) -> tuple[Tensor, State]:
        estimate, state = self._updated(x, native, state)
        return estimate.prediction.native, state

    def traces(self, x: Tensor, native: Mapping[Query, Tensor], state: State) -> Mapping[str, Tensor]:
        """What the rules report."""
        return self._updated(x, native, state)[0].traces

    def _updated(self, x: Tensor, native: Mapping[Query, Tensor], state: State) -> tuple[Estimate, State]:
        read = {query: Prediction(value, x, LEVEL, EPSILON) for query, value in native.items()}
        predictions = Predictions(read, {query: query for query in read}, read[POSITIVE])
        return self.rule.update(Estimate(read[POSITIVE]), predictions, self.step, state)


def flat(state: State) -> list[Tensor]:
    """The tensors of a state."""
    parts = (flat(item) if isinstance(item, tuple) else [item] for item in state)
    return [one for part in parts for one in part if isinstance(one, Tensor)]


@pytest.mark.slow
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


SEQUENCE = (2, 50, 8)  # batch, time, channels


@pytest.mark.parametrize(
    ("shape", "axes"),
    [(SEQUENCE, (1,)), (SEQUENCE, (-2,)), (SEQUENCE, (2,)), (SEQUENCE, (1, 2)), (SHAPE, (2, 3)), (SHAPE, (-1,))],
)
@pytest.mark.parametrize("eta", [0.0, 0.3])
@pytest.mark.parametrize(("radius", "momentum"), [(None, 0.0), (1.5, -0.5)])
def test_the_axes_of_apg_are_those_of_norm_and_projection(
    shape: tuple[int, ...], axes: tuple[int, ...], eta: float, radius: float | None, momentum: float
) -> None:
    """As diffusers, ACE-Step and others have it, on the same tensors."""
    from diffusers.guiders.adaptive_projected_guidance import MomentumBuffer, normalized_guidance

    rule = APG(4, eta=eta, radius=radius, momentum=momentum, axes=axes)
    run = Run(shape, dtype=torch.float64, steps=2, seeds=(0, 1))
    buffer, state = MomentumBuffer(momentum), rule.init(run)
    generator = torch.Generator().manual_seed(0)
    for index in range(2):
        c, u, x = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3))
        read = {name: Prediction(value, x, LEVEL, X0) for name, value in ((POSITIVE, c), (NEGATIVE, u))}
        predictions = Predictions(read, {query: query for query in read}, read[POSITIVE])
        estimate, state = rule.update(Estimate(read[POSITIVE]), predictions, Step(run, index, LEVEL), state)
        wanted = normalized_guidance(c, u, 3.0, buffer, eta, radius or 0.0, True, axes)
        torch.testing.assert_close(estimate.prediction.native, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("wrapped", ["cfg(4)", "apg(4)", "cfgpp(0.6)"])
def test_a_threshold_of_1_stops_only_where_predictions_have_one_direction(space: str, wrapped: str) -> None:
    """The quotient of three sums in float32 is 1 or more for predictions that clearly differ."""
    stopping = Updating(f"adaptive({wrapped}, threshold=1, space='{space}')")
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        c = torch.randn(SHAPE, generator=generator)
        u = c + 1e-4 * torch.randn(SHAPE, generator=generator)
        u[1] = c[1]
        guided, state = stopping(torch.ones(SHAPE), {POSITIVE: c, NEGATIVE: u}, stopping.state)
        assert state[0].crossed.tolist() == [False, True]
        assert not torch.equal(guided[0], c[0])
        assert torch.equal(guided[1], c[1])


def test_the_cosine_is_a_cosine() -> None:
    measuring = Updating("adaptive(cfg(4), threshold=2)")
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        c, other = (torch.randn(SHAPE, generator=generator) for _ in range(2))
        for u in (other, -c, 3 * c, c + 1e-3 * other, -c + 1e-3 * other, 1e-20 * other, 1e15 * other):
            traces = measuring.traces(torch.ones(SHAPE), {POSITIVE: c, NEGATIVE: u}, measuring.state)
            a, b = c.double().flatten(1), u.double().flatten(1)
            expected = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))
            assert (traces["cosine"] - expected).abs().max() < 1e-6
            assert traces["cosine"].abs().max() <= 1
    always = Updating("adaptive(cfg(4), threshold=-1)")
    opposite = {POSITIVE: c, NEGATIVE: -c}
    assert always(torch.ones(SHAPE), opposite, always.state)[1][0].crossed.all()
