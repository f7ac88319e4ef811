"""LinearAG: the regression, the file, and what a run under it does and refuses."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from torch import Tensor

import guidestack as gs
from guidestack.guidance.errors import CompositionError, GuidanceNotAppliedError, InputError, RuleError
from guidestack.guidance.plan import SchedulePoint, plan
from guidestack.guidance.prediction import EPSILON, Level
from guidestack.guidance.query import NEGATIVE, POSITIVE, Network, Queries, Request
from guidestack.guidance.rule import Rule
from guidestack.guidance.rules.linear_ag import fit as linear
from guidestack.guidance.rules.linear_ag.rule import Recorded, Recording, letters
from guidestack.guidance.run import GuidedRun
from guidestack.guidance.step import Run, State, Step
from guidestack.guidance.testing import composition
from guidestack.guidance.testing.checks import IDENTITY, LEVELS, Oracle, check_rule, oracle_run

N = len(LEVELS)
FILE = "oracle.safetensors"
PAPER = [letter == "g" for letter in letters("paper", N)]


# --- a network whose contrast is exactly a linear function of what came before --------------------------------------


class Process(Network):
    """``c_i`` is some function of x, ``u_i = 0.7 c_i - 0.3 c_{i-1} + 0.2 u_{i-1}``."""

    parameterization = EPSILON
    conditions = ("null", "positive")
    aliases = {"negative": "null"}  # noqa: RUF012

    def __init__(self) -> None:
        self.c: list[Tensor] = []
        self.u: list[Tensor] = []

    def arrive(self, x: Tensor) -> None:
        c = x + 0.5 * (3 * x + len(self.c)).sin()
        before = (self.c[-1], self.u[-1]) if self.c else (torch.zeros_like(c), torch.zeros_like(c))
        self.c.append(c)
        self.u.append(0.7 * c - 0.3 * before[0] + 0.2 * before[1])

    def run(self, requests: Sequence[Request]) -> list[Tensor]:
        return [{"positive": self.c, "null": self.u}[r.query.condition][-1].clone() for r in requests]


def processed(rule: Rule, seed: int, batch: int = 6) -> tuple[Tensor, GuidedRun, Process]:
    """The last x of a run of DDIM on the process, the run, and the process."""
    x = torch.randn(batch, 2, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    run = GuidedRun(gs.Stack(rule), Run(tuple(x.shape), x.dtype, steps=N, identity=IDENTITY))
    process = Process()
    for index, level in enumerate(LEVELS):
        process.arrive(x)
        prediction = run.estimate(process, x, index, level).prediction
        after = LEVELS[index + 1] if index + 1 < N else Level(1.0, 0.0)
        x = after.noised(prediction.denoised, prediction.noise)
    return x, run, process


def process_fit(runs: int = 3) -> linear.Fit:
    fit = linear.Fit.empty("cfg(3)", N, IDENTITY)
    for seed in range(runs):
        _, run, _ = processed(Recorded(gs.CFG(3)), seed)
        fit = fit.with_runs(run.state[0].c, run.state[0].u)
    return fit


@pytest.mark.parametrize("policy", ["geeeee", "eeeeee", "gegege", "geceee"])
def test_on_a_linear_process_it_is_cfg(tmp_path: Path, policy: str) -> None:
    linear.write(process_fit(), tmp_path / FILE, PAPER)
    guided = [gs.During(gs.CFG(3), progress=(i / N, (i + 1) / N)) for i, letter in enumerate(policy) if letter != "c"]
    wanted, plain, _ = processed(gs.Stack(*guided), 77)
    seen, run, _ = processed(gs.LinearAG(gs.CFG(3), str(tmp_path / FILE), policy), 77)
    assert (seen - wanted).abs().max() < 1e-12 * wanted.abs().max()
    assert run.report.evaluations == [N + policy.count("g")] * 6
    assert plain.report.evaluations == [N + len(guided)] * 6
    assert (seen - processed(gs.Stack(), 77)[0]).abs().max() > 1e-2


# --- the regression --------------------------------------------------------------------------------------------------


def histories(samples: int = 5, steps: int = 4, size: int = 40) -> tuple[list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(3)
    drawn = torch.randn(2 * steps, samples, size, generator=generator, dtype=torch.float64)
    mixed = torch.einsum("ij,jbd->ibd", torch.randn(2 * steps, 2 * steps, generator=generator).double(), drawn)
    return list(mixed[:steps]), list(mixed[steps:])


def test_against_least_squares_written_out() -> None:
    c, u = histories()
    fit = linear.Fit.empty("cfg(3)", 4, {}).with_runs(c, u)
    guided = [True, False, True, True]
    seen = linear.table(fit.triangle, guided).numpy()
    residuals = linear.residuals(fit.triangle, guided)
    for i in range(4):
        names = [("c", j) for j in range(i + 1)] + [("u", j) for j in range(i) if guided[j]]
        columns = np.stack([(c if kind == "c" else u)[j].flatten().numpy() for kind, j in names], 1)
        target = u[i].flatten().numpy()
        wanted, *_ = np.linalg.lstsq(columns, target, rcond=None)
        places = [j if kind == "c" else 4 + j for kind, j in names]
        assert np.allclose(seen[i, places], wanted, rtol=1e-10, atol=1e-12)
        assert not np.delete(seen[i], places).any()
        rest = target - columns @ wanted
        assert np.abs(columns.T @ (target - columns @ seen[i, places])).max() < 1e-11 * np.abs(columns.T @ target).max()
        assert residuals[i][0] == pytest.approx(np.linalg.norm(rest) / np.linalg.norm(target), rel=1e-10)
        difference = c[i].flatten().numpy() - target
        assert residuals[i][1] == pytest.approx(np.linalg.norm(rest) / np.linalg.norm(difference), rel=1e-10)


def test_the_triangle_is_that_of_all_rows_however_they_come() -> None:
    c, u = histories()
    whole = linear.Fit.empty("cfg(3)", 4, {}).with_runs(c, u)
    pieces = linear.Fit.empty("cfg(3)", 4, {})
    for rows in (slice(0, 2), slice(2, 3), slice(3, 5)):
        pieces = pieces.with_runs([one[rows] for one in c], [one[rows] for one in u])
    assert torch.equal(pieces.triangle, whole.triangle)
    assert (pieces.trajectories, pieces.elements) == (5, 40)
    table = torch.stack([one.flatten() for one in (*c, *u)], 1)
    assert torch.allclose(whole.triangle.T @ whole.triangle, table.T @ table, rtol=1e-12)
    assert torch.equal(whole.triangle, whole.triangle.triu())
    assert (whole.triangle.diagonal() > 0).all()


def test_nearly_collinear_columns_keep_their_digits() -> None:
    generator = torch.Generator().manual_seed(5)
    base, *parts = torch.randn(5, 1, 60, generator=generator, dtype=torch.float64)
    c = [base + 1e-9 * part for part in parts]
    # As of a difference of two neighbours, which is what predicting the next from the last ones is made of.
    u = [1e9 * (c[1] - c[0]), *c[1:]]
    fit = linear.Fit.empty("cfg(3)", 4, {}).with_runs(c, u)
    found = linear.solve(fit.triangle, 4, (0, 1))
    assert torch.allclose(found, torch.tensor([-1e9, 1e9], dtype=torch.float64), rtol=1e-5)
    # The Gram matrix has lost them: its condition is the square.
    gram = fit.triangle.T @ fit.triangle
    squared = torch.linalg.lstsq(gram[:2, :2], gram[:2, [4]], driver="gelsd").solution.flatten()
    assert not torch.allclose(squared, found, rtol=0.1)


def test_columns_that_are_zero_or_the_same_have_the_smallest_coefficients() -> None:
    one = torch.arange(1.0, 7.0, dtype=torch.float64).reshape(1, 6)
    fit = linear.Fit.empty("cfg(3)", 2, {}).with_runs([one, one], [torch.zeros_like(one), 4 * one])
    assert torch.allclose(linear.solve(fit.triangle, 3, (0, 1, 2)), torch.tensor([2.0, 2.0, 0.0]).double())
    assert linear.residuals(fit.triangle, [True, True])[0] == (0.0, 0.0)


# --- the policy ------------------------------------------------------------------------------------------------------


def test_the_papers_policy() -> None:
    assert letters("paper", 20) == "ge" * 5 + "c" * 10
    assert [letters("paper", steps) for steps in (1, 2, 3, 6, 7)] == ["c", "gc", "gcc", "gegccc", "gegcccc"]


def test_twenty_steps_cost_25_evaluations(tmp_path: Path) -> None:
    path = tmp_path / FILE
    generator = torch.Generator().manual_seed(1)
    triangle = torch.randn(40, 40, generator=generator, dtype=torch.float64).triu()
    fit = linear.Fit("cfg(4)", 20, {"model": "some", "levels": "some"}, triangle)
    linear.write(fit, path, [letter == "g" for letter in letters("paper", 20)])
    schedule = [SchedulePoint(index, 0, Level.vp((index + 1) / 25)) for index in range(20)]
    stack = gs.Stack(gs.LinearAG(gs.CFG(4), str(path)))
    counts = [len(one.queries) for one in plan(stack, schedule)]
    assert counts == [2, 1] * 5 + [1] * 10
    assert sum(counts) == 25
    with pytest.raises(RuleError, match="fitted for the steps '20' and this run has '19'"):
        plan(stack, schedule[:19])


def test_with_no_replaced_step_it_is_the_rule_to_the_bit(oracle_fit: Any) -> None:
    for text in ("cfg(3)", "cfg(3) | rescale(0.7)", "apg(4, radius=2, momentum=-0.5)"):
        stack = gs.parse(text)
        oracle_fit(stack)
        seen, wanted = oracle_run(gs.LinearAG(stack, FILE, "g" * N)), oracle_run(stack)
        assert all(torch.equal(a, b) for a, b in zip(seen.outputs, wanted.outputs, strict=True))
        assert seen.run.report.evaluations == [2 * N] * 3
        assert seen.run.report.trace("estimated") == [[0.0] * 3] * N
        unguided = oracle_run(gs.LinearAG(stack, FILE, "c" * N))
        assert all(torch.equal(a, b) for a, b in zip(unguided.outputs, oracle_run(gs.Stack()).outputs, strict=True))


@pytest.mark.parametrize(
    ("text", "policy", "evaluations"),
    [
        ("cfg(3) | rescale(0.7, space='noise')", "paper", [8, 8, 8]),
        ("apg(4, radius=2, momentum=-0.5)", "geeege", [8, 8, 8]),
        ("cfgpp(0.6)", "eegccc", [7, 7, 7]),
        ("during(cfg(3), sigma=(0.5, 6))", "gegege", [7, 7, 7]),
        ("prefix(cfg(3), 2)", "gegege", [7, 7, 7]),
        ("perpneg(3)", "geeeee", [19, 19, 25]),
        ("cfg(3) | tsg(2, strength=0.5)", "gegece", [13, 13, 13]),
    ],
)
def test_the_invariants_around_other_rules(oracle_fit: Any, text: str, policy: str, evaluations: list[int]) -> None:
    inner = gs.parse(text)
    oracle_fit(gs.LinearAG(inner, FILE).rule)
    rule = gs.LinearAG(inner, FILE, policy)
    allowed = {"1. ", "10.", "11.", "12."} if text == "cfgpp(0.6)" else {"10.", "11.", "12."}
    assert {name[:3] for name, result in check_rule(rule).items() if result != "passed"} <= allowed
    report = oracle_run(rule).run.report
    assert report.evaluations == evaluations
    # Where the rule asks for nothing, outside its window, there is nothing to estimate.
    inside = [len(one.queries) > 1 for one in oracle_run(inner).run.report.steps]
    wanted = [letter == "e" and here for letter, here in zip(letters(policy, N), inside, strict=True)]
    assert report.trace("estimated") == [[float(one)] * 3 for one in wanted]


def test_an_estimate_is_the_sum_that_the_file_says(oracle_fit: Any) -> None:
    fit = oracle_fit(gs.CFG(3))
    run = oracle_run(gs.LinearAG(gs.CFG(3), FILE, "ggeccc"))
    plain = Oracle()
    with safetensors.safe_open(FILE, framework="pt") as file:
        stored = file.get_tensor("coefficients")
    assert torch.equal(stored, linear.table(fit.triangle, PAPER))
    beta = linear.table(fit.triangle, [True, True, False, False, False, False])[2]
    answers = []
    for index, x in enumerate(run.inputs[:3]):
        network = plain.network(x, plain.levels[index])
        answers.append(network.run([Request(POSITIVE, None), Request(NEGATIVE, None)]))
    u = sum(beta[j] * answers[j][0] for j in range(3)) + sum(beta[N + j] * answers[j][1] for j in range(2))
    wanted = u + 3 * (answers[2][0] - u)
    assert torch.allclose(run.outputs[2], wanted, rtol=1e-11, atol=1e-11)
    assert not torch.allclose(run.outputs[2], oracle_run(gs.CFG(3)).outputs[2], rtol=1e-6)


def test_nothing_is_kept_that_no_estimate_will_read(oracle_fit: Any) -> None:
    oracle_fit(gs.CFG(3))
    oracle, kept = Oracle(), []
    run, x = oracle.begin(gs.LinearAG(gs.CFG(3), FILE, "gegccc")), oracle.start()
    for index in range(N):
        x = oracle.step(run, x, index)[1]
        kept.append((len(run.state[0].c), len(run.state[0].u), run.state[0].done))
    assert kept == [(1, 1, 1), *((0, 0, done) for done in range(2, N + 1))]


def test_a_recorded_run_is_the_rules_own_to_the_bit() -> None:
    seen, wanted = oracle_run(Recorded(gs.CFG(3))), oracle_run(gs.CFG(3))
    assert all(torch.equal(a, b) for a, b in zip(seen.outputs, wanted.outputs, strict=True))
    (state,) = seen.run.state
    assert (len(state.c), len(state.u)) == (N, N)
    # Outside its window, too: the contrast of a step is a regressor for those after it.
    (state,) = oracle_run(Recorded(gs.During(gs.CFG(3), sigma=(0.5, 1)))).run.state
    assert all((c - u).abs().max() > 1e-3 for c, u in zip(state.c, state.u, strict=True))
    assert str(gs.Stack(Recorded(gs.CFG(3)))) == "cfg(3)"


def test_a_rule_without_a_contrast_to_evaluate_reads_no_file() -> None:
    rule = gs.LinearAG(gs.CFG(1), "nowhere.safetensors")
    assert oracle_run(rule).run.report.evaluations == [N] * 3


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: gs.LinearAG("cfg(3)", "x"), "wraps a rule, got 'cfg(3)'"),
        (lambda: gs.LinearAG(gs.CFG(3), Path("x.safetensors")), "as text; got"),
        (lambda: gs.LinearAG(gs.CFG(3), ""), "as text; got ''"),
        (lambda: gs.LinearAG(gs.CFG(3), "x", "gex"), "a letter for each step"),
        (lambda: gs.LinearAG(gs.CFG(3), "x", ""), "a letter for each step"),
        (lambda: gs.LinearAG(gs.CFG(3), "x", None), "got None"),
        (lambda: gs.LinearAG(gs.Rescale(0.5), "x"), "rescale(0.5) guides away from nothing"),
        (lambda: gs.LinearAG(gs.ICG(3), "x"), "'independent:tokens', a condition drawn anew at every step"),
        (lambda: gs.LinearAG(gs.TSG(3), "x"), "a perturbed network"),
        (lambda: gs.LinearAG(gs.CFG(3, against="positive@weak"), "x"), "'positive@weak', another network"),
        (lambda: gs.LinearAG(gs.CFG(3, against="positive"), "x"), "the prompt itself"),
        (lambda: gs.LinearAG(gs.CFG(3, against="null+grad"), "x"), "a prediction with gradients"),
        (lambda: gs.LinearAG(gs.AdaptiveGuidance(gs.CFG(3)), "x"), "stops evaluating the contrast sample by"),
        (lambda: gs.LinearAG(gs.LinearAG(gs.CFG(3), "x"), "x"), "linear_ag around linear_ag(cfg(3), 'x')"),
    ],
)
def test_wrong_parameters_are_one_clear_line(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(RuleError) as caught:
        make()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("other", [*composition.standing(), "linear_ag(cfg(3), 'x')"])
def test_nothing_stands_beside_it(other: str) -> None:
    mine = "linear_ag(cfg(3), 'x')"
    for text in (f"{mine} | {other}", f"{other} | {mine}"):
        with pytest.raises(CompositionError) as caught:
            gs.parse(text)
        assert "linear_ag(cfg(3), 'x')" in str(caught.value) or "before" in str(caught.value)


@pytest.mark.parametrize("wrapper", composition.wrappers())
def test_nothing_stands_around_it(wrapper: str) -> None:
    with pytest.raises(CompositionError, match=r"around linear_ag\(cfg\(3\), 'x'\)"):
        gs.parse(wrapper.format("linear_ag(cfg(3), 'x')"))


def begun(rule: Rule, steps: int = N, **identity: str | None) -> GuidedRun:
    known = {name: value for name, value in {**IDENTITY, **identity}.items() if value is not None}
    return GuidedRun(gs.Stack(rule), Run((2, 3), steps=steps, identity=known))


@pytest.mark.parametrize(
    ("rule", "change", "message"),
    [
        ("cfg(3)", {"model": "B"}, "the model 'oracle' and this run has 'B'"),
        ("cfg(3)", {"scheduler": "Euler"}, "the scheduler 'DDIM' and this run has 'Euler'"),
        ("cfg(3)", {"levels": "other"}, "the noise levels 'oracle' and this run has 'other'"),
        ("cfg(3)", {"negative": "given"}, "the negative prompt 'empty' and this run has 'given'"),
        ("cfg(3)", {"model": None}, "'oracle' and this run does not say its model: guidestack.sample takes identity="),
        ("cfg(3)", {"steps": 7, "levels": "other"}, "the steps '6' and this run has '7'"),
        ("cfg(4)", {}, "the rule 'cfg(3)' and this run has 'cfg(4)'"),
        ("cfg(3, against='null')", {}, "the rule 'cfg(3)' and this run has \"cfg(3, against='null')\""),
    ],
)
def test_elsewhere_it_is_refused(oracle_fit: Any, rule: str, change: dict[str, Any], message: str) -> None:
    oracle_fit(gs.CFG(3))
    assert begun(gs.LinearAG(gs.CFG(3), FILE)).state
    with pytest.raises(RuleError) as caught:
        begun(gs.LinearAG(gs.parse(rule), FILE), **change)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_policy_has_a_letter_for_each_step(oracle_fit: Any) -> None:
    oracle_fit(gs.CFG(3))
    with pytest.raises(RuleError, match="policy 'gec' has 3 letters and the run 6 steps"):
        begun(gs.LinearAG(gs.CFG(3), FILE, "gec"))


def test_runs_that_begin_in_the_middle_or_evaluate_twice_are_refused(oracle_fit: Any) -> None:
    oracle_fit(gs.CFG(3))
    oracle = Oracle()
    for rule in (gs.LinearAG(gs.CFG(3), FILE), Recorded(gs.CFG(3))):
        run, x = oracle.begin(rule), oracle.start()
        with pytest.raises(RuleError, match="this run is at step 2 after 0 steps"):
            oracle.step(run, x, 2)
        oracle.step(run, x, 0)
        with pytest.raises(RuleError, match="one evaluation a step, and this sampler has two"):
            run.estimate(oracle.network(x, LEVELS[1]), x, 0, LEVELS[1], evaluation=1)


@dataclass(frozen=True)
class Some(gs.CFG):
    """CFG of the first sample only."""

    def __str__(self) -> str:
        return "some(3)"

    def queries(self, step: Step, state: State) -> Queries:
        first = step.run.mask(sample == 0 for sample in range(step.run.batch))
        return {POSITIVE: None, self.contrast: first}


def test_a_contrast_of_some_samples_is_refused(oracle_fit: Any) -> None:
    oracle_fit(Some(3))
    assert oracle_run(Recorded(Some(3))).run.report.evaluations == [2 * N] * 3
    with pytest.raises(RuleError, match="of some samples only"):
        oracle_run(gs.LinearAG(Some(3), FILE))


# --- the file --------------------------------------------------------------------------------------------------------


def altered(path: Path, drop: str = "", triangle: Tensor | None = None, **header: Any) -> None:
    """Write `path` again with something else in it."""
    with safetensors.safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        kept = {**json.loads(file.metadata()["linear_ag"]), **header}
    if triangle is not None:
        tensors["triangle"] = triangle
    tensors.pop(drop, None)
    safetensors.torch.save_file(tensors, path, {"linear_ag": json.dumps(kept)})


class Evil:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("it-ran"),))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.write_bytes(pickle.dumps(Evil())), "cannot read the coefficients"),
        (lambda path: torch.save({"a": torch.zeros(1)}, path), "cannot read the coefficients"),
        (lambda path: path.write_bytes(b""), "cannot read the coefficients"),
        (lambda path: path.write_bytes(path.read_bytes()[:-9]), "cannot read the coefficients"),
        (lambda path: path.write_bytes(b"\xff" * 64), "cannot read the coefficients"),
        (lambda path: path.unlink(), "No such file"),
        (lambda path: (path.unlink(), path.mkdir()), "not a file of coefficients"),
        (lambda path: os.truncate(path, linear.MAX_BYTES + 1), "at most 64000000 expected"),
        (lambda path: safetensors.torch.save_file({"a": torch.zeros(1)}, path), "no metadata 'linear_ag'"),
        (lambda path: safetensors.torch.save_file({}, path, {"linear_ag": "[" * 100_000}), "cannot read the coeff"),
        (lambda path: safetensors.torch.save_file({}, path, {"linear_ag": "{"}), "cannot read the coefficients"),
        (lambda path: altered(path, format=2), "of format 1"),
        (lambda path: altered(path, space="denoised"), "in the space 'noise'"),
        (lambda path: altered(path, steps=0), "out of range"),
        (lambda path: altered(path, steps=True), "out of range"),
        (lambda path: altered(path, steps=10**6), "out of range"),
        (lambda path: altered(path, elements=-1), "out of range"),
        (lambda path: altered(path, rule=3), "'rule' is no text"),
        (lambda path: altered(path, valid={"model": 3}), "'valid' is no mapping of texts"),
        (lambda path: altered(path, made=[]), "'made' is no mapping of texts"),
        (lambda path: altered(path, steps=5), "not a float64 matrix of 10 x 10"),
        (lambda path: altered(path, drop="triangle"), "not a float64 matrix of 12 x 12"),
        (lambda path: altered(path, triangle=torch.zeros(12, 12)), "not a float64 matrix"),
        (lambda path: altered(path, triangle=torch.full((12, 12), torch.nan).double()), "not finite"),
    ],
)
def test_files_are_untrusted(oracle_fit: Any, spoil: Callable[[Path], Any], message: str) -> None:
    oracle_fit(gs.CFG(3))
    spoil(Path(FILE))
    with pytest.raises(InputError) as caught:
        begun(gs.LinearAG(gs.CFG(3), FILE))
    assert message in str(caught.value)
    assert FILE in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    assert not Path("it-ran").exists()


def test_a_name_is_one_of_those_that_come_with_guidestack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"no coefficients '\.\./x'.*ends in \.safetensors.*fit-linear-ag"):
        begun(gs.LinearAG(gs.CFG(3), "../x"))
    monkeypatch.setattr(linear, "FOLDER", tmp_path)
    linear.write(process_fit(1), tmp_path / "tiny.safetensors", PAPER)
    assert begun(gs.LinearAG(gs.CFG(3), "tiny")).state[0].triangle.shape == (2 * N, 2 * N)
    with pytest.raises(InputError, match="no coefficients 'tinny'; did you mean 'tiny'"):
        begun(gs.LinearAG(gs.CFG(3), "tinny"))


def test_those_that_come_with_guidestack_can_be_read() -> None:
    for name in linear.names():
        fit = linear.read(linear.locate(name))
        assert fit.trajectories > 0
        assert set(fit.valid) == {"model", "scheduler", "levels", "negative"}
        assert gs.parse(fit.rule)


def test_it_is_read_once_and_again_when_it_changed(tmp_path: Path) -> None:
    path = tmp_path / FILE
    fit = process_fit(1)
    linear.write(fit, path, PAPER)
    first = linear.read(path)
    assert linear.read(path) is first
    more = fit.with_runs(*histories(2, N, 8))
    linear.write(more, path, PAPER)
    again = linear.read(path)
    assert torch.equal(again.triangle, more.triangle)
    assert not torch.equal(again.triangle, first.triangle)
    assert dataclasses.replace(again, triangle=more.triangle).trajectories == more.trajectories
    assert (again.rule, again.steps, again.valid, again.made) == (fit.rule, fit.steps, fit.valid, fit.made)


def test_it_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep" / FILE
    fit = process_fit(1)
    linear.write(fit, path, PAPER)
    before = path.read_bytes()
    linear.write(fit, path, PAPER)
    assert path.read_bytes() == before  # the same fit is the same file, byte by byte

    def full(self: Path, target: Any) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(InputError, match="No space left"):
        linear.write(fit.with_runs(*histories(2, N, 8)), path, PAPER)
    assert path.read_bytes() == before
    assert [one.name for one in path.parent.iterdir()] == [FILE]


# --- on models -------------------------------------------------------------------------------------------------------


def seeded(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(sample) for sample in range(count)]


GIVEN: dict[str, Any] = {"num_inference_steps": 4, "output_type": "latent"}
PROMPTS = ["a cat", "red", "sea"]


def fit_on(pipe: Any, path: Path, rule: gs.Rule) -> Recording:
    """Fit on one call of the tiny pipeline; returns what was recorded."""
    guided = gs.guide(pipe, Recorded(rule))
    guided(PROMPTS, generator=seeded(3), **GIVEN)
    (state,) = guided.run.state
    fit = linear.Fit.empty(str(rule), 4, guided.run.run.identity).with_runs(state.c, state.u)
    linear.write(fit, path, [True] * 4)
    return state  # type: ignore[no-any-return]


def test_through_guide_against_a_loop_by_hand(pipe: Any, tmp_path: Path) -> None:
    path = tmp_path / FILE
    state = fit_on(pipe, path, gs.CFG(3))
    guided = gs.guide(pipe, gs.LinearAG(gs.CFG(3), str(path), "gece"))
    seen = guided(PROMPTS, generator=seeded(3), **GIVEN).images
    assert guided.report.evaluations == [5] * 3
    assert [record.rows for record in guided.report.steps] == [6, 3, 3, 3]
    assert guided.report.trace("estimated") == [[0.0] * 3, [1.0] * 3, [0.0] * 3, [1.0] * 3]

    # Ordinary least squares on what the guided call evaluated, and DDIM by its formula.
    def fitted(i: int, c: list[int], u: list[int]) -> Any:
        columns = torch.stack([*(state.c[j].flatten() for j in c), *(state.u[j].flatten() for j in u)], 1)
        return torch.linalg.lstsq(columns.double(), state.u[i].double().flatten().unsqueeze(1)).solution.flatten()

    x = torch.stack([torch.randn(4, 8, 8, generator=generator) for generator in seeded(3)])
    pipe.scheduler.set_timesteps(4)
    texts = {name: pipe.encode_prompt(of, "cpu", 1, False)[0] for name, of in (("c", PROMPTS), ("u", [""] * 3))}
    c, u0 = [], None
    for i, t in enumerate(pipe.scheduler.timesteps):
        with torch.no_grad():
            c.append(pipe.unet(x, t, texts["c"]).sample)
            u0 = pipe.unet(x, t, texts["u"]).sample if i == 0 else u0
        if i == 0:
            eps = u0 + 3 * (c[0] - u0)
        elif i in (1, 3):
            weights = fitted(i, list(range(i + 1)), [0])
            u = sum(float(w) * one for w, one in zip(weights, [*c, u0], strict=True))
            eps = u + 3 * (c[i] - u)
        else:
            eps = c[i]
        alphas, before = pipe.scheduler.alphas_cumprod, int(t) - 250
        now, then = alphas[int(t)], alphas[before] if before >= 0 else pipe.scheduler.final_alpha_cumprod
        x = then.sqrt() * (x - (1 - now).sqrt() * eps) / now.sqrt() + (1 - then).sqrt() * eps
    assert (seen - x).abs().max() < 1e-4 * x.abs().max()
    assert (seen - gs.guide(pipe, gs.CFG(3))(PROMPTS, generator=seeded(3), **GIVEN).images).abs().max() > 1e-3


def test_the_empty_prompt_has_two_names(pipe: Any, tmp_path: Path) -> None:
    path = tmp_path / FILE
    rule = gs.CFG(3) | gs.CFG(2, against="null")
    fit_on(pipe, path, rule)
    guided = gs.guide(pipe, gs.LinearAG(rule, str(path), "geec"))
    guided(PROMPTS, generator=seeded(3), **GIVEN)
    assert [record.rows for record in guided.report.steps] == [6, 3, 3, 3]


def test_guide_refuses_what_the_fit_is_not_for(new_pipe: Any, tmp_path: Path) -> None:
    from diffusers import DDIMScheduler, HeunDiscreteScheduler

    path, pipe = tmp_path / FILE, new_pipe()
    fit_on(pipe, path, gs.CFG(3))
    guided = gs.guide(pipe, gs.LinearAG(gs.CFG(3), str(path)))
    options = {"generator": seeded(1), **GIVEN}
    guided("a", **options)
    with pytest.raises(RuleError, match="the negative prompt 'empty' and this run has 'given'"):
        guided("a", negative_prompt="b", **options)
    guided("a", negative_prompt="", **options)  # what the pipeline itself takes for none
    with pytest.raises(RuleError, match="the steps '4' and this run has '5'"):
        guided("a", **{**options, "num_inference_steps": 5})
    original = pipe.scheduler
    pipe.scheduler = DDIMScheduler.from_config(original.config, clip_sample=True)
    with pytest.raises(RuleError, match=r"the scheduler 'DDIMScheduler:\w+' and this run has 'DDIMScheduler:"):
        guided("a", **options)
    pipe.scheduler = HeunDiscreteScheduler.from_config(original.config)
    with pytest.raises(RuleError, match="this run has 'HeunDiscreteScheduler:"):
        guided("a", **options)
    with pytest.raises(RuleError, match="this sampler has two"):
        gs.guide(pipe, Recorded(gs.CFG(3)))("a", **options)
    pipe.scheduler = original
    with torch.no_grad():
        pipe.unet.conv_in.weight.add_(0.1)
    with pytest.raises(RuleError, match=r"the model 'UNet2DConditionModel:\w+' and this run has 'UNet"):
        guided("a", **options)


def test_through_sample(tmp_path: Path) -> None:
    from diffusers import DDIMScheduler

    def model(x: Tensor, level: Level, conditions: Tensor, /) -> Tensor:
        return (x * conditions[:, :, None]).tanh()

    path = tmp_path / FILE
    options: dict[str, Any] = {
        "conditions": {"positive": torch.full((2, 3), 0.9), "null": torch.full((2, 3), 0.5)},
        "shape": (3, 4),
        "seeds": (1, 2),
        "steps": 6,
    }
    scheduler = DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
    records: list[GuidedRun] = []
    original = GuidedRun.finish

    def finish(self: GuidedRun) -> Any:
        records.append(self)
        return original(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GuidedRun, "finish", finish)
        gs.sample(model, Recorded(gs.CFG(3)), scheduler, identity={"model": "mine"}, **options)
    (state,) = records[0].state
    assert records[0].run.identity is not None
    assert set(records[0].run.identity) == {"model", "scheduler", "levels", "negative"}
    fit = linear.Fit.empty("cfg(3)", 6, records[0].run.identity).with_runs(state.c, state.u)
    linear.write(fit, path, PAPER)
    stack = gs.LinearAG(gs.CFG(3), str(path))
    seen = gs.sample(model, stack, scheduler, identity={"model": "mine"}, **options)
    assert seen.report.evaluations == [8, 8]
    with pytest.raises(RuleError, match="does not say its model"):
        gs.sample(model, stack, scheduler, **options)
    with pytest.raises(RuleError, match="the model 'mine' and this run has 'yours'"):
        gs.sample(model, stack, scheduler, identity={"model": "yours"}, **options)
    more = {**options["conditions"], "negative": torch.full((2, 3), 0.1)}
    with pytest.raises(RuleError, match="'empty' and this run has 'given'"):
        gs.sample(model, stack, scheduler, identity={"model": "mine"}, **{**options, "conditions": more})


def test_samples_of_another_size_are_refused_where_earlier_ones_are_remembered(oracle_fit: Any) -> None:
    oracle_fit(gs.CFG(3))
    oracle = Oracle()
    for stack in (gs.Stack(gs.LinearAG(gs.CFG(3), FILE)), gs.Stack(gs.Schedule(gs.APG(3, momentum=-0.5), "g*"))):
        run, x = oracle.begin(stack), oracle.start()
        _, x = oracle.step(run, x, 0)
        with pytest.raises(GuidanceNotAppliedError, match=r"remembers samples of shape \(2, 3, 3\) .* \(2, 3, 5\)"):
            oracle.step(run, torch.nn.functional.pad(x, (0, 2)), 1)
