"""The benchmark: it compares the same work, side by side, and says what it measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import guidestack as gs
from guidestack.guidance.prediction import X0, Level, Prediction
from guidestack.guidance.query import POSITIVE, Predictions, Query
from guidestack.guidance.rule import Estimate, Run, Step
from guidestack.scripts.bench import __main__ as bench
from guidestack.scripts.bench import arithmetic
from guidestack.scripts.bench.pipelines import SIDES, Bench, Side
from guidestack.scripts.bench.table import Row
from guidestack.scripts.bench.timing import Spread, Timing, interleaved

SHAPE = (2, 4, 8, 8)


class Clock:
    """Seconds that runs take by themselves, times a machine that slows down with every run."""

    def __init__(self, drift: float) -> None:
        self.now, self.slowness, self.drift = 0.0, 1.0, drift
        self.order: list[str] = []

    def run(self, name: str, seconds: float) -> Callable[[], None]:
        def one() -> None:
            self.order.append(name)
            self.now += seconds * self.slowness
            self.slowness += self.drift

        return one


def test_a_drift_of_the_machine_cancels() -> None:
    clock = Clock(drift=0.05)
    sides = {"twice": clock.run("twice", 2), "thrice": clock.run("thrice", 3)}
    found = interleaved(clock.run("reference", 1), sides, 4, clock=lambda: clock.now)
    for name, ratio in (("twice", 2), ("thrice", 3)):
        assert found[name].ratio.low == pytest.approx(ratio)
        assert found[name].ratio.high == pytest.approx(ratio)
        assert found[name].seconds.high > 1.1 * found[name].seconds.low  # the drift was there
    timed = clock.order[3:]  # after one run of everybody
    assert timed[0::2] == ["reference"] * 9
    assert timed[1::2] == ["twice", "thrice", "thrice", "twice"] * 2


def test_a_spread_is_of_its_values() -> None:
    assert Spread.of([3, 1, 2, 10]) == Spread(1, 2.5, 10)
    assert str(Spread(0.5, 1, 2)) == "1.000 (0.500 to 2.000)"


def by_name(side: str) -> Side:
    return next(one for one in SIDES if one.name == side)


def test_every_side_runs_and_counts_its_evaluations(pipe: Any) -> None:
    tiny = Bench(pipe, batch=2, steps=4)
    tiny.stock()
    shares = {name: run() for name, run in tiny.runs().items()}
    assert {name: shares[name] for name in shares if name != "Adaptive Guidance"} == {
        "stock at scale 1": 0.5,
        "CFG": 1.0,
        "Perp-Neg, 1 negative": 1.5,
        "Perp-Neg, 3 negatives": 2.5,
        "APG": 1.0,
        "ICG": 1.0,
        "CFG and Rescale": 1.0,
        "CFG++": 1.0,
    }
    assert 0.5 <= shares["Adaptive Guidance"] <= 1
    assert tiny.guided(Side("x", "prefix(cfg(4), 1)"))() == 5 / 8


def test_the_stock_side_is_what_cfg_equals(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    images: list[Any] = []
    original = type(pipe).__call__

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        images.append(original(self, *args, **kwargs, output_type="np").images)
        return original(self, *args, **kwargs)

    tiny = Bench(pipe, batch=2, steps=2)
    with monkeypatch.context() as patch:
        patch.setattr(type(pipe), "__call__", call)
        tiny.stock()
    made = gs.guide(pipe, by_name("CFG").stack)(**tiny._given(), output_type="np").images
    assert (images[0] == made).all()


def test_the_limit_of_a_stack_that_saves_evaluations_is_per_evaluation(
    pipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "SIDES", (Side("a", "cfg(4)"), Side("b", "stack()", per_evaluation=True)))
    timing = Timing(Spread(1, 1, 1), Spread(0.4, 0.6, 0.8))
    monkeypatch.setattr(bench, "interleaved", lambda reference, runs, repeats, clock: dict.fromkeys(runs, timing))
    monkeypatch.setattr(bench.Bench, "runs", lambda self: {"a": lambda: 1.0, "b": lambda: 0.5})
    first, second = bench.whole(pipe, 1, 3)
    assert (first.figure, second.figure) == (0.6, pytest.approx(1.2))
    assert not first.line().endswith("exceeded")
    assert second.line().endswith("1.200 <= 1.03  exceeded")


def test_a_mixture_of_guided_and_unguided_steps_is_the_measure() -> None:
    def row(ratio: float, evaluations: float) -> Row:
        return Row("pipeline", "n", "", 1, Timing(Spread(1, 1, 1), Spread(0, ratio, 9)), evaluations, ratio, None)

    alone = row(0.7, 0.5)
    assert bench.mixture(alone, alone) == pytest.approx(1)
    assert bench.mixture(alone, row(1.1, 1.0)) == pytest.approx(1.1)
    assert bench.mixture(alone, row(0.85 * 1.2, 0.75)) == pytest.approx(1.2)


def test_the_apg_that_is_timed_is_the_guiders() -> None:
    """The guider projects the network's output: for one that emits denoised samples the two are the same numbers."""
    answers = arithmetic.Answers(SHAPE)
    guider = arithmetic.of_diffusers(answers)["APG"]
    first, second = guider(), guider()
    assert not torch.equal(first, second)  # its momentum is at work
    rule = gs.APG(10, radius=15, momentum=-0.5)
    level = Level.vp(0.5)
    native = {query: Prediction(value, answers.x, level, X0) for query, value in answers.native.items()}
    predictions = Predictions(native, {query: query for query in native}, native[POSITIVE])
    step, state = Step(Run(SHAPE), 0, level), rule.init(Run(SHAPE))
    for expected in (first, second):
        estimate, state = rule.update(Estimate(predictions[POSITIVE]), predictions, step, state)
        assert torch.allclose(estimate.prediction.native, expected, atol=1e-5)


def test_the_rescale_that_is_timed_is_the_guiders() -> None:
    answers = arithmetic.Answers(SHAPE)
    ours = arithmetic.of_stack(arithmetic.SIDES[-1], answers)()
    assert torch.allclose(ours, arithmetic.of_diffusers(answers)["CFG, rescale"](), atol=1e-6)


def test_a_step_of_every_side_is_what_its_rule_says() -> None:
    answers = arithmetic.Answers(SHAPE)
    c, u = (answers.native[Query(name)] for name in ("positive", "negative"))
    results = {side.name: arithmetic.of_stack(side, answers)() for side in arithmetic.SIDES}
    assert torch.allclose(results["CFG"], u + 10 * (c - u))
    drawn = answers.native[Query("independent:tokens")]
    assert torch.allclose(results["ICG"], drawn + 10 * (c - drawn))
    assert not torch.allclose(results["Perp-Neg, 1 negative"], results["Perp-Neg, 3 negatives"])
    moved = results["CFG++"] - answers.x  # alpha' times the way from u to the jump
    way = 0.8 * (u - c)  # in noise, of which less is more of the denoised
    assert torch.allclose(moved / moved.norm(), way / way.norm(), atol=1e-5)
    for value in results.values():
        assert value.shape == SHAPE
        assert torch.isfinite(value).all()


def test_the_command_prints_a_table_and_writes_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(arithmetic, "SHAPE", SHAPE)
    to = tmp_path / "deep" / "rows.json"
    done = CliRunner().invoke(bench.main, ["--arithmetic", "--repeats", "3", "--json", str(to)])
    assert done.exit_code == 0, done.output
    rows = json.loads(to.read_text())
    assert [row["name"] for row in rows] == [side.name for side in arithmetic.SIDES]
    for row in rows:
        assert 0 < row["ratio"]["low"] <= row["ratio"]["median"] == row["figure"] <= row["ratio"]["high"]
        assert row["seconds"]["low"] > 0
        assert row["name"] in done.output
    assert [path.name for path in to.parent.iterdir()] == ["rows.json"]


def test_the_pipelines_table(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "bundled", lambda: pipe)
    monkeypatch.setattr(bench, "peak", lambda name, batch: {"CFG": 3, "stock": 2}[name])
    monkeypatch.setattr(bench, "SIDES", (SIDES[0], SIDES[-1]))
    monkeypatch.setattr("guidestack.scripts.bench.pipelines.STEPS", 2)
    done = CliRunner().invoke(bench.main, ["--batch", "2", "--repeats", "3", "--clock", "cpu"])
    assert done.exit_code == 0, done.output
    assert "batch 2, cpu time, 1 threads" in done.output
    assert "peak memory of CFG over stock: 1.500" in done.output
    assert "Adaptive Guidance over as many guided and unguided steps of the stock pipeline: " in done.output


def test_a_row_is_plain_values() -> None:
    timing = Timing(Spread(1, 2, 3), Spread(0.1, 0.2, 0.3))
    row = Row("pipeline", "n", "cfg(2)", 4, timing, 0.5, 0.4, None)
    assert json.loads(json.dumps(row.mapping())) == {
        "what": "pipeline",
        "name": "n",
        "stack": "cfg(2)",
        "batch": 4,
        "evaluations": 0.5,
        "seconds": {"low": 1, "median": 2, "high": 3},
        "ratio": {"low": 0.1, "median": 0.2, "high": 0.3},
        "figure": 0.4,
        "limit": None,
    }
    assert "<=" not in row.line()
