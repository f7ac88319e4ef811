"""Schedules: what a plan means, what it costs, and that a step which goes by earlier ones does as its formula says."""

from __future__ import annotations

import math
from typing import Any

import diffusers
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import guidestack as gs
from guidestack.guidance.errors import CompositionError, RuleError
from guidestack.guidance.plan import SchedulePoint, plan
from guidestack.guidance.prediction import EPSILON, Level, Prediction
from guidestack.guidance.query import POSITIVE, Predictions, evaluate
from guidestack.guidance.rules.schedule import read_plan, written_plan
from guidestack.guidance.step import Estimate, Run, Step
from guidestack.guidance.testing import composition
from guidestack.guidance.testing.checks import LEVELS, Oracle, check_rule, oracle_run

N = len(LEVELS)
SCHEDULE = [SchedulePoint(index, 0, level, Oracle().time(index)) for index, level in enumerate(LEVELS)]


def lam(level: Level) -> float:
    return -math.log(level.k_sigma)


def vector(value: Tensor, x: Tensor, level: Level, space: str) -> Tensor:
    """Clean samples as what `space` calls them."""
    if space == "denoised":
        return value
    noise = (x - level.alpha * value) / level.sigma
    return noise if space == "noise" else level.alpha * noise - level.sigma * value


def clean(value: Tensor, x: Tensor, level: Level, space: str) -> Tensor:
    if space == "denoised":
        return value
    if space == "noise":
        return (x - level.sigma * value) / level.alpha
    return level.alpha * x - level.sigma * value  # alpha^2 + sigma^2 = 1 on these levels


class ByHand:
    """The formulas of the docstring around CFG at 3, step by step, for one sample like for all."""

    def __init__(self, letters: str, order: int = 1, skip_order: int = 1, space: str = "velocity") -> None:
        self.letters, self.order, self.skip_order, self.space = letters, order, skip_order, space
        self.step = 0
        self.updates: list[tuple[Level, Tensor]] = []
        self.estimates: list[tuple[Level, Tensor]] = []

    @staticmethod
    def line(kept: list[tuple[Level, Tensor]], level: Level, order: int) -> Tensor:
        if order == 0 or len(kept) < 2:
            return kept[-1][1]
        (a, before), (b, now) = kept[-2:]
        return now + (lam(level) - lam(b)) / (lam(b) - lam(a)) * (now - before)

    def __call__(self, D: Any, x: Tensor, level: Level) -> Tensor:
        letter = self.letters[self.step]
        self.step = (self.step + 1) % len(self.letters)
        if letter == "s":
            return clean(self.line(self.estimates, level, self.skip_order), x, level, self.space)
        estimate = base = D("positive")
        if letter == "g":
            estimate = D("negative") + 3 * (D("positive") - D("negative"))
            away = vector(estimate, x, level, self.space) - vector(base, x, level, self.space)
            self.updates.append((level, away))
        elif letter == "r":
            held = self.line(self.updates, level, self.order)
            estimate = clean(vector(base, x, level, self.space) + held, x, level, self.space)
        self.estimates.append((level, vector(estimate, x, level, self.space)))
        return estimate


@pytest.mark.parametrize("letters", ["gggggg", "gggccc", "ggrrrr", "gsgsgs", "ggsrsg", "gcsgrs", "gsssss"])
@pytest.mark.parametrize("options", [{}, {"order": 0, "space": "noise"}, {"skip_order": 0, "space": "denoised"}])
def test_every_letter_is_its_formula(letters: str, options: dict[str, Any]) -> None:
    results = check_rule(gs.Schedule(gs.CFG(3), letters, **options), ByHand(letters, **options))
    assert results["12. golden values on the Gaussian mixture"] == "passed"


def test_guided_everywhere_is_the_rule_itself() -> None:
    wanted = oracle_run(gs.APG(3, momentum=-0.5)).outputs
    for one, other in zip(oracle_run(gs.Schedule(gs.APG(3, momentum=-0.5), "g*")).outputs, wanted, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("text", "each", "calls"),
    [
        ("schedule(cfg(3), 'g*')", [12] * 3, 6),
        ("schedule(cfg(3), 'g2 r c s*')", [6] * 3, 4),
        ("schedule(cfg(3), '(gs)*')", [6] * 3, 3),
        ("schedule(perpneg(3), 'g r s g r s')", [10, 10, 12], 4),
        ("schedule(cfg(1), 'g r s*')", [2] * 3, 2),
        ("schedule(cfgpp(0.6), 'g s r s g s')", [5] * 3, 3),
    ],
)
def test_what_it_costs_is_counted(text: str, each: list[int], calls: int) -> None:
    report = oracle_run(gs.parse(text)).run.report
    assert report.evaluations == each
    assert report.calls == calls
    assert report.rows == sum(each)
    planned = plan(gs.parse(text), SCHEDULE, negatives=2, positives=0 if "perpneg" not in text else 1)
    assert sum(len(one.queries) for one in planned) == max(each)


def test_a_plan_says_what_a_step_asks_for() -> None:
    planned = plan(gs.parse("schedule(cfg(3), 'g r s c g s')"), SCHEDULE)
    assert [len(one.queries) for one in planned] == [2, 1, 0, 1, 2, 0]


def test_a_sample_that_has_stopped_is_left_alone() -> None:
    """Inside a schedule Adaptive Guidance decides at guided steps; what is reused of a stopped sample is nothing."""
    stack = gs.parse("schedule(adaptive(cfg(3), threshold=0.9, space='denoised', crossing='conditional'), 'g3 r3')")
    run = oracle_run(stack)
    guiding = torch.tensor(run.run.report.trace("guiding"))[-1].bool()
    assert 0 < guiding.sum() < 3  # else this says nothing
    oracle = Oracle()
    for index in (3, 4, 5):
        network = oracle.network(run.inputs[index], LEVELS[index], index)
        prompt = evaluate(network, {}, run.inputs[index], LEVELS[index]).predictions[POSITIVE].native
        same = torch.isclose(run.outputs[index], prompt, rtol=1e-12).flatten(1).all(1)
        assert torch.equal(same, ~guiding)


def test_a_held_estimate_is_one_longer_step() -> None:
    """DDIM over the levels a, b, c that skips b is DDIM over a, c, whether x0 or the noise is held."""
    jumps = Oracle(levels=(LEVELS[0], LEVELS[2], LEVELS[4]))
    wanted = oracle_run(gs.CFG(3), jumps).denoised
    for space in ("denoised", "noise"):
        rule = gs.Schedule(gs.CFG(3), "(gs)*", skip_order=0, space=space)  # type: ignore[arg-type]
        seen = oracle_run(rule, Oracle(levels=LEVELS[:5])).denoised
        for one, other in zip(seen[::2], wanted, strict=True):
            assert torch.allclose(one, other, rtol=1e-10)


def test_a_line_is_gone_on_with_exactly() -> None:
    """Estimates that lie on a line in log-SNR: a skipped step answers the next point of it."""
    stack, level = gs.parse("schedule(cfg(1), 'g2 s*', space='denoised')"), LEVELS[0]
    run = Run((1, 2), torch.float64, steps=N)
    state, slope = stack.init(run), torch.tensor([[2.0, -3.0]], dtype=torch.float64)
    for index, level in enumerate(LEVELS[:4]):
        x = torch.full((1, 2), 0.3, dtype=torch.float64)
        answer = Prediction(x, x, level, EPSILON).replace("denoised", 0.5 + slope * lam(level))
        asked = Prediction(torch.full_like(x, math.nan), x, level, EPSILON) if index > 1 else answer
        step = Step(run, index, level)
        nobody = Predictions({POSITIVE: asked}, {POSITIVE: POSITIVE}, asked)
        estimate, state = stack.update(Estimate(asked), nobody, step, state)
        assert torch.allclose(estimate.prediction.denoised, answer.denoised, rtol=1e-12)


def test_nothing_is_kept_that_no_step_needs() -> None:
    oracle = Oracle()
    for text, updates, estimates in (("g*", 0, 0), ("g3 r c s", 2, 2), ("g3 c3", 0, 0), ("g2 s r c*", 2, 2)):
        run, x = oracle.begin(gs.Schedule(gs.CFG(3), text)), oracle.start()
        most = [0, 0]
        for index in range(N):
            _, x = oracle.step(run, x, index)
            (state,) = run.state
            most = [max(a, len(b)) for a, b in zip(most, (state.updates, state.estimates), strict=True)]
        assert most == [updates, estimates], text
        if "c*" in text:
            assert (state.updates, state.estimates) == ((), ())


def test_a_run_that_begins_mid_way_has_nothing_to_go_by() -> None:
    """The first step is guided then, whatever the letter; the plan goes on from there."""
    oracle = Oracle()
    run, x = oracle.begin(gs.Schedule(gs.CFG(3), "g3 r s g")), oracle.start()
    for index in (3, 4, 5):
        _, x = oracle.step(run, x, index)
    assert [record.evaluations(3)[0] for record in run.report.steps] == [2, 0, 2]


@pytest.mark.parametrize(
    "scheduler", ["HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "DPMSolverMultistepScheduler"]
)
def test_it_goes_through_solvers_of_second_order(scheduler: str) -> None:
    """A letter is for both evaluations of a step."""
    made = getattr(diffusers, scheduler)(num_train_timesteps=50)
    weights = torch.tensor([[1.0], [0.4], [2.0]])

    def model(x: Tensor, level: Level, conditions: Tensor) -> Tensor:
        return x * 0.2 + conditions.reshape(-1, 1)

    def run(stack: str) -> Any:
        return gs.sample(
            model, stack, made, conditions={"positive": weights, "null": 0 * weights}, shape=(4,), seeds=(0, 1, 2),
            steps=4,
        )  # fmt: skip

    whole, part = run("cfg(3)"), run("schedule(cfg(3), 'g2 r s')")
    evaluations = dict.fromkeys(range(4), 0)
    for record in part.report.steps:
        evaluations[record.index] += record.evaluations(3)[0]
    points = {index: sum(record.index == index for record in part.report.steps) for index in range(4)}
    assert evaluations == {0: 2 * points[0], 1: 2 * points[1], 2: points[2], 3: 0}
    assert torch.isfinite(part.x).all()
    assert not torch.equal(part.x, whole.x)
    assert torch.equal(run("schedule(cfg(3), 'g*')").x, whole.x)


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_rows_can_be_bounded(rows: int) -> None:
    rule, oracle = gs.Schedule(gs.CFG(3), "g r s g r s"), Oracle()
    run, x = oracle.begin(rule), oracle.start()
    run.max_rows = rows
    for index, wanted in enumerate(oracle_run(rule).outputs):
        estimate, x = oracle.step(run, x, index)
        assert torch.allclose(estimate.prediction.native, wanted, rtol=1e-9)
    assert run.report.evaluations == [6] * 3


@given(
    st.text("gcrs", min_size=1, max_size=40).map(lambda text: "g" + text),
    st.sampled_from(["", "c", "gs", "rs", "ggsr"]),
)
@settings(max_examples=300, deadline=None)
def test_a_plan_reads_back(head: str, tail: str) -> None:
    text = written_plan(head, tail)
    again_head, again_tail = read_plan(text)
    assert again_tail == tail
    length = len(head) + 3 * max(1, len(tail))
    assert (again_head + again_tail * 40)[: length if tail else None] == (head + tail * 40)[: length if tail else None]
    assert written_plan(again_head, again_tail) == text
    rule = gs.Schedule(gs.CFG(3), text)
    assert gs.parse(str(rule)).rules == (rule,)


@pytest.mark.parametrize(
    ("written", "canonical"),
    [
        ("gggggg", "g6"),
        ("g 6 c*", "g6 c*"),
        ("g6 c c c*", "g6 c*"),
        ("gr gr gr c", "(gr)3 c"),
        ("(g2r)3", "(ggr)3"),
        ("(gs)4 (gs)*", "(gs)*"),
    ],
)
def test_plans_that_mean_the_same_are_the_same(written: str, canonical: str) -> None:
    assert gs.Schedule(gs.CFG(3), written).plan == canonical
    assert gs.Schedule(gs.CFG(3), written) == gs.Schedule(gs.CFG(3), canonical)


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ("", "cannot read the plan ''"),
        ("gx", "cannot read the plan 'gx': it is letters g (guided), c (conditional), r"),
        ("G2", "cannot read"),
        ("g0", "cannot read"),
        ("g()", "cannot read"),
        ("g(r(s))", "cannot read the plan 'g(r(s))'"),
        ("g(c", "cannot read"),
        ("g* c", "cannot read"),
        ("c g2*", "cannot read"),
        ("g (cr)12*", "cannot read"),
        ("g3  0 c", "cannot read"),
        ("g!", "cannot read"),
        ("g9999", "1000 letters at most"),
        ("(gggg)999", "1000 letters at most"),
        ("s g", "begins with s, which needs an earlier step"),
        ("c r g", "begins with r, which needs an earlier step: put g before it"),
        ("r*", "begins with r"),
        (7, "plan is a text"),
    ],
)
def test_a_wrong_plan_is_one_clear_line(plan: Any, message: str) -> None:
    with pytest.raises(RuleError) as caught:
        gs.Schedule(gs.CFG(3), plan)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": 2}, "order must be a whole number between 0 and 1; got 2"),
        ({"skip_order": -1}, "skip_order must be a whole number"),
        ({"space": "score"}, "unknown space 'score'"),
    ],
)
def test_wrong_options_are_one_clear_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RuleError) as caught:
        gs.Schedule(gs.CFG(3), "g*", **options)
    assert message in str(caught.value)


def test_a_plan_is_for_its_number_of_steps() -> None:
    for text, message in (("g4 c", "is for 5 steps, and this run has 6"), ("g8 c*", "is for at least 8 steps")):
        with pytest.raises(RuleError) as caught:
            oracle_run(gs.Schedule(gs.CFG(3), text))
        assert message in str(caught.value)
    for text in ("g2 c4", "g6 c*", "g c*", "(gsr)*"):
        oracle_run(gs.Schedule(gs.CFG(3), text))
    assert gs.Schedule(gs.CFG(3), "g2 (rs)*").letters(7) == "ggrsrsr"


@pytest.mark.parametrize("other", composition.standing())
def test_nothing_stands_beside_it(other: str) -> None:
    for text in (f"schedule(cfg(3), 'g s*') | {other}", f"{other} | schedule(cfg(3), 'g s*')"):
        with pytest.raises(CompositionError):
            gs.parse(text)


@pytest.mark.parametrize("wrapper", composition.wrappers())
def test_nothing_stands_around_it(wrapper: str) -> None:
    with pytest.raises(CompositionError, match="was made for whole runs of its own rule alone"):
        gs.parse(wrapper.format("schedule(cfg(3), 'g s*')"))
