"""Rules that take turns: the invariants, what is evaluated and counted, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import guidestack as gs
from guidestack.guidance import NEGATIVE, POSITIVE, Look, Move, Sight, check_move
from guidestack.guidance.errors import CompositionError, RuleCheckError, RuleError
from guidestack.guidance.plan import SchedulePoint, plan
from guidestack.guidance.query import Query
from guidestack.guidance.rule import Rule
from guidestack.guidance.step import Run, Step
from guidestack.guidance.testing.checks import LEVELS, Oracle, oracle_run

Turn = Callable[..., Tensor]


def own(value: Tensor) -> Tensor:
    return value.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)


def langevin(power: float, snr: float | None = None, steps: int = 1) -> Turn:
    """A Langevin step whose prediction is held: an Ornstein-Uhlenbeck process about alpha D, solved over the time e."""

    def reference(D: Callable[[str], Tensor], x: Tensor, step: Step, noise: Callable[[str], Tensor]) -> Tensor:
        alpha, sigma = step.level.alpha, step.level.sigma
        middle = alpha * (D("negative") + power * (D("positive") - D("negative")))
        z, score = noise("langevin"), (middle - x) / sigma**2
        if snr is None:
            assert step.before is not None
            lowered = (step.before.sigma / step.before.alpha) ** 2 - (sigma / alpha) ** 2
            time = torch.tensor(alpha**2 * lowered, dtype=torch.float64)
        else:
            time = 4 * (snr * own(z) / own(score)) ** 2
        pull = (-time / (2 * sigma**2)).exp()
        return middle + pull * (x - middle) + sigma * (-torch.expm1(-time / sigma**2)).sqrt() * z

    return reference


def recur(D: Callable[[str], Tensor], x: Tensor, step: Step, noise: Callable[[str], Tensor]) -> Tensor:
    """A DDIM step and back, in variance exploding coordinates, where noise is added and nothing scaled."""
    assert step.after is not None
    clean, here, there = D("positive"), step.level.k_sigma, step.after.k_sigma
    reached = clean + there / here * (x / step.level.alpha - clean)
    return step.level.alpha * (reached + (here**2 - there**2) ** 0.5 * noise("recur"))


def ppgn(prior: float, condition: float, size: float) -> Turn:
    """The three terms, in variance exploding coordinates; pictures are the two channels and their mean, halved."""

    def reference(D: Callable[[str], Tensor], x: Tensor, step: Step, noise: Callable[[str], Tensor]) -> Tensor:
        sigma, z, clean = step.level.k_sigma, x / step.level.alpha, D("positive")
        first, second = (clean[:, i : i + 1] / 2 + 0.5 for i in range(2))
        mean = (first + second) / 2
        slope = -torch.cat([first + (mean - 1) / 2, second + (mean - 1) / 2], 1) / 2
        # The papers' sample is z divided by the norm of (1, sigma), and the slope stands for that with respect to it.
        slope = slope / math.hypot(1, sigma)
        moved = z + prior * (clean - z) + condition * sigma**2 * slope + size * sigma * noise("ppgn")
        return step.level.alpha * moved

    return reference


TABLE: dict[str, Turn] = {
    "ppgn('blue', 2, prior=0.3)": ppgn(0.3, 0.3, math.sqrt(1 - 0.7**2)),
    "ppgn('blue', prior=1, condition=-0.2, noise=0.5)": ppgn(1, -0.2, 0.5),
    "recur(3)": recur,
    "langevin(2)": langevin(1),
    "langevin(power=3)": langevin(3),
    "langevin(2, power=1, snr=0.3)": langevin(1, 0.3),
    "langevin(1, power=-1, snr=0.1)": langevin(-1, 0.1),
    "during(langevin(2, power=3), progress=(0, 0.5))": langevin(3),
}


@pytest.mark.parametrize("text", TABLE)
def test_a_move_keeps_the_invariants_and_leads_where_its_formula_says(text: str) -> None:
    results = check_move(gs.parse(text).rules[0], TABLE[text])
    assert not {
        result for result in results.values() if result not in ("passed", "not applicable: asks for no perturbed query")
    }


def test_without_a_power_the_score_is_the_stacks() -> None:
    power, under = (
        oracle_run(gs.parse(text), Oracle()) for text in ("cfg(3) | langevin(power=3)", "cfg(3) | langevin()")
    )
    for one, other in zip(power.outputs, under.outputs, strict=True):
        assert torch.allclose(one, other, atol=1e-9, rtol=0)


def test_two_equal_moves_are_one_of_twice_the_steps() -> None:
    twice, one = (oracle_run(gs.parse(text), Oracle()) for text in ("langevin(1) | langevin(1)", "langevin(2)"))
    assert all(map(torch.equal, twice.outputs, one.outputs))


def test_the_plan_the_report_and_the_network_agree() -> None:
    stack = gs.parse("during(cfg(3), progress=(0, 0.5)) | langevin(2, power=3) | langevin(1)")
    report = oracle_run(stack, Oracle()).run.report
    planned = plan(stack, [SchedulePoint(index, 0, level) for index, level in enumerate(LEVELS)])
    assert [(one.when.step, one.turn, set(one.queries)) for one in planned] == [
        (record.index, record.turn, set(record.queries)) for record in report.steps
    ]
    assert sum(len(one.queries) for one in planned) == report.evaluations[0] == 9 + 5 * 2 * 2 + 2 * 2 + 3
    assert [record.turn for record in report.steps] == [0] + [1, 2, 3, 0] * 5


class Seen(NamedTuple):
    """What `Elsewhere` remembers."""

    there: Tensor | None


@pytest.fixture
def named() -> Iterator[Callable[[type[Rule]], None]]:
    """Gives rules of a test names for the length of the test."""
    from guidestack.guidance.notation.registry import _ENTRIES, register

    before = set(_ENTRIES)
    yield lambda rule: register(rule.__name__.lower())(rule) and None
    for name in set(_ENTRIES) - before:
        del _ENTRIES[name]


def test_where_a_run_stands_is_the_same_in_a_turn_and_in_an_update(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[Step] = []
    monkeypatch.setattr(
        gs.Langevin, "update", lambda self, estimate, answers, step, state: (steps.append(step), (estimate, state))[1]
    )
    monkeypatch.setattr(gs.Langevin, "look", lambda self, x, step, state: steps.append(step))
    monkeypatch.setattr(gs.Langevin, "turn", lambda self, x, sight, step, state: (x, state))
    oracle_run(gs.Langevin(1), Oracle())
    assert [(step.index, step.turn) for step in steps] == [(0, 0)] + [(i, turn) for i in range(1, 6) for turn in (1, 0)]
    for step in steps:
        assert step.before == (LEVELS[step.index - 1] if step.index else None)
        assert step.after == LEVELS[min(step.index + 1, 5)]
        assert step.level == LEVELS[step.index]


@dataclass(frozen=True)
class Elsewhere(Move[Seen]):
    """Looks at the samples, then at others at another level, moves nothing, and adds what it saw."""

    def init(self, run: Run) -> Seen:
        return Seen(None)

    def asks(self) -> frozenset[Query]:
        return frozenset({POSITIVE, NEGATIVE})

    def queries(self, step: Step, state: Seen) -> Mapping[Query, None]:
        return {POSITIVE: None}

    def turns(self, step: Step, state: Seen) -> int:
        return 2

    def look(self, x: Tensor, step: Step, state: Seen) -> Look:
        if step.turn == 1:
            return Look({POSITIVE: None})
        return Look({NEGATIVE: None}, x=2 * x, level=gs.guidance.Level.ve(0.5))

    def turn(self, x: Tensor, sight: Sight, step: Step, state: Seen) -> tuple[Tensor, Seen]:
        return x, Seen(None if step.turn == 1 else sight.predictions[NEGATIVE].denoised)


def test_what_was_answered_in_a_turn_is_not_evaluated_again(named: Callable[[type[Rule]], None]) -> None:
    named(Elsewhere)
    run = oracle_run(Elsewhere(), Oracle()).run
    first, second, third = run.report.steps[:3]
    assert [list(map(str, one.queries)) for one in (first, second, third)] == [["positive"], ["negative"], []]
    assert (first.calls, second.calls, third.calls) == (1, 1, 0)
    assert run.report.evaluations == [2 * len(LEVELS)] * 3
    assert second.level == gs.guidance.Level.ve(0.5)
    assert second.turn == 2
    there = Oracle().network(2 * Oracle().start(), second.level)
    from guidestack.guidance.query import evaluate

    wanted = evaluate(there, {NEGATIVE: None}, there.x, second.level).predictions[NEGATIVE].denoised
    whole = oracle_run(Elsewhere(), Oracle(levels=LEVELS[:1])).run
    assert torch.equal(whole.state[0].there, wanted)


@dataclass(frozen=True)
class Broken(Elsewhere):
    """A move with one thing wrong."""

    what: str = ""

    def queries(self, step: Step, state: Seen) -> Mapping[Query, None]:
        return {}

    def look(self, x: Tensor, step: Step, state: Seen) -> Look:
        if self.what == "undeclared":
            return Look({Query("null"): None})
        return Look({POSITIVE: None, NEGATIVE: None})

    def turn(self, x: Tensor, sight: Sight, step: Step, state: Seen) -> tuple[Tensor, Seen]:
        if self.what == "unread":
            return x, state
        c, u = sight.predictions[POSITIVE].denoised, sight.predictions[NEGATIVE].denoised
        if self.what == "in place":
            x.add_(1e-3)
        if self.what == "batch":
            c = c / c.norm()
        if self.what == "random":
            c = c + torch.randn(())
        return x + 0.1 * (c - u), state


def test_the_checks_catch_what_turns_do_wrong(named: Callable[[type[Rule]], None]) -> None:
    named(Broken)
    for what, said in (
        ("undeclared", "look() names null"),
        ("unread", "turn 1 of step 0 and never reads it"),
        ("in place", "turn changed its arguments"),
        ("batch", "6. a batch"),
        ("random", "two turns of the same arguments differ"),
        ("golden", "turn 1 of step 0 leads elsewhere"),
    ):
        with pytest.raises(RuleCheckError) as caught:
            check_move(Broken(what), langevin(1, snr=0.1) if what == "golden" else None)
        assert said in str(caught.value)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: gs.Langevin(-1), RuleError, "steps"),
        (lambda: gs.Recur(0), RuleError, "times"),
        (lambda: gs.Resample(1, 3), RuleError, "particles"),
        (lambda: gs.Resample(2, "x"), RuleError, "power"),
        (lambda: gs.Resample(2, (("positive", "x"),)), RuleError, "pairs of a query and its exponent"),
        (lambda: gs.Resample(2, (("positive", 1), ("positive", 2))), RuleError, "twice"),
        (lambda: gs.Resample(2, 3, sigma=(2, 1)), RuleError, "sigma"),
        (lambda: gs.Resample(2, 3, below=2), RuleError, "below"),
        (lambda: gs.parse("cfg(3) | resample(2, 3)"), CompositionError, "guides by itself"),
        (lambda: gs.parse("during(resample(2, 3), progress=(0, 0.5))"), CompositionError, "a window of its own"),
        (lambda: gs.PPGN("blue", prior=0), RuleError, "prior must be"),
        (lambda: gs.PPGN("blue", noise=-1), RuleError, "noise must be"),
        (lambda: gs.PPGN("a b"), RuleError, "an objective is named"),
        (lambda: gs.Langevin(power="x"), RuleError, "power must be a finite number"),
        (lambda: gs.Langevin(snr=0), RuleError, "snr must be"),
        (lambda: gs.Langevin(against="no such!"), RuleError, "condition@model"),
        (lambda: gs.parse("adaptive(langevin(2))"), CompositionError, "adaptive around it does not reach"),
        (lambda: gs.parse("prefix(cfg(3) | langevin(2), 3)"), CompositionError, "or into during(...)"),
        (lambda: gs.parse("langevin(2) | rescale(0.5)"), CompositionError, "nothing to work on"),
        (
            lambda: gs.as_denoiser("langevin()", lambda x, sigma: x, sigmas=[1.0, 0.0], conditions={}),
            CompositionError,
            "does not support that",
        ),
    ],
)
def test_what_cannot_work_is_one_clear_line(make: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        make()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
