"""The benchmark: it compares the same work, side by side, and says what it measured."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import guidestack as gs
from guidestack.guidance.prediction import X0, Level, Prediction
from guidestack.guidance.query import POSITIVE, Predictions, Query
from guidestack.guidance.step import Estimate, Run, Step
from guidestack.scripts.bench import __main__ as bench
from guidestack.scripts.bench import arithmetic, cli, memory, models, page
from guidestack.scripts.bench.measure import Found, Timed, Watched, _found, measured
from guidestack.scripts.bench.models import Model
from guidestack.scripts.bench.pipelines import FITTED, SIDES, Bench, Side, chosen
from guidestack.scripts.bench.table import Row, line, short
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


KEYS = ("model", "stack", "batch", "time_ratio", "evaluation_ratio", "efficiency", "memory_ratio")


def ticking() -> Callable[[], float]:
    """A clock that goes on by 1 whenever it is read: a call of the network takes 1, whatever its rows."""
    count = itertools.count()
    return lambda: float(next(count))


def found(pipe: Any, side: Side, steps: int = 4) -> Found:
    bench = Bench(pipe, 2, steps)
    watched = Watched(pipe, ticking())
    return measured(watched, bench.stock, {side.name: bench.guided(side)}, steps, 2)[0][side.name]


EVALUATIONS = {
    "unguided": 0.5,
    "CFG": 1.0,
    "Rescale": 1.0,
    "Renorm": 1.0,
    "APG": 1.0,
    "CFG++": 1.0,
    "CFG, Renoise": 1.0,
    "ICG": 1.0,
    "TSG": 1.0,
    "Autoguidance": 1.0,
    "PLADIS": 0.5,
    "NASA": 0.5,
    "NAG": 0.5,
    **dict.fromkeys(("CFG-Zero*", "TCFG", "FDG", "FreSca", "MAMBO-G", "SMC-CFG", "Momentum", "Skimmed CFG"), 1.0),
    **dict.fromkeys(
        ("Threshold", "ADG", "FBG", "epsilon scaling", "PAG", "SEG", "SLG", "TPG", "SG", "S2", "ramp"), 1.0
    ),
    "Langevin": 1.75,  # once more in each step but the first of 4
    "time travel": 2.0,
    "particles": 1.0,
    "zigzag": 2.5,
    "FSG": 2.125,  # three iterations of three evaluations
    "CFG-MP": 3.0,  # two iterations of two in each step
    "token merging": 1.0,
    "classifier": 1.0,
    "EluCD": 1.0,
    "classifier reference": 1.0,
    "PPGN": 1.75,
    "TFG, mean": 1.0,
    "TFG, variance": 1.0,
    "replacement": 1.0,
    "RED-diff": 1.0,
    "interval": 0.75,  # steps 1 and 2 of 4 are at 0.25 and 0.5 of the way
    "prefix": 0.75,  # two of four steps
    "Schedule": 0.75,  # g r g c
    "Perp-Neg, 1 negative": 1.5,
    "Perp-Neg, 3 negatives": 2.5,
    "Perp-Neg, 3, max_rows": 2.5,
}


@pytest.mark.parametrize("side", [side for side in SIDES if side.name in EVALUATIONS], ids=lambda side: side.name)
def test_every_side_runs_and_its_evaluations_are_counted(pipe: Any, side: Side) -> None:
    assert found(pipe, side).evaluation_ratio == EVALUATIONS[side.name]
    assert "forward" not in vars(pipe.unet)


def test_every_rule_has_its_row() -> None:
    from guidestack.guidance.notation.registry import rules

    asked = {part for side in SIDES for part in re.findall(r"\b[a-z_0-9]+(?=\()", side.stack)} - {"stack"}
    assert asked == {entry.name for entry in rules()} - {"rectified_cfg"}  # for flow models, which the bundled is not
    adaptive = next(side for side in SIDES if side.name == "Adaptive Guidance")
    assert set(EVALUATIONS) == {side.name for side in SIDES if not side.steps} - {adaptive.name}


def test_calls_that_a_rule_could_have_spared_and_time_beside_them_cost_efficiency(pipe: Any) -> None:
    """By the clock above: a call takes 1, as it does bare, and each is a tick of what is around it."""
    cfg = found(pipe, Side("CFG", "cfg(4)"))
    assert (cfg.efficiency, cfg.added) == (1.0, 0.0)
    assert cfg.seconds.median == 1 + 2 * 4
    tsg = found(pipe, Side("TSG", "tsg(4)"))
    assert tsg.added == 1.0  # a step has a call more than the stock pipeline's
    assert tsg.efficiency == 8 / (8 + 4)
    assert tsg.time_ratio.median == 17 / 9


def test_efficiency_is_bare_calls_over_what_they_cost() -> None:
    one = Timed(whole=[12.0], ratios=[1.2], rest=[3.0], added=[1.0, 1.0, 5.0], calls={4: [2.0, 2.5, 9.0], 2: [1.0]},
                counts={4: 3, 2: 1}, slowness=[1.0, 1.25, 4.0])  # fmt: skip
    reference = Timed(whole=[10.0], rest=[2.0], counts={4: 4})
    result = _found(one, reference, steps=4)
    network = 3 * 2.5 + 1
    assert result.efficiency == pytest.approx(network / 1.25 / (network + 1))
    assert result.share == pytest.approx(network / 1.25 / 12)
    assert result.added == pytest.approx(1 / 4)
    assert result.evaluation_ratio == 14 / 16


def test_a_call_that_is_slower_than_a_bare_one_costs_efficiency(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pipeline's network does twice what its bare copy does, by a clock that counts layers."""
    count = itertools.count()

    def twice(forward: Any) -> Any:
        def called(*args: Any, **kwargs: Any) -> Any:
            next(count)
            return forward(*args, **kwargs)

        return called

    bench = Bench(pipe, 2, 4)
    watched = Watched(pipe, lambda: float(next(count)))
    with watched.watching():
        monkeypatch.setattr(pipe.unet.conv_in, "forward", twice(pipe.unet.conv_in.forward), raising=False)
        one = Timed()
        watched.run(bench.stock, one)
    assert one.slowness == [2.0]  # one of four calls has a bare one beside it


def test_the_stock_side_is_what_cfg_equals(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    images: list[Any] = []
    original = type(pipe).__call__

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        images.append(original(self, *args, **kwargs, output_type="np").images)

    tiny = Bench(pipe, batch=2, steps=2)
    with monkeypatch.context() as patch:
        patch.setattr(type(pipe), "__call__", call)
        tiny.stock()
    made = gs.guide(pipe, "cfg(4)")(**tiny._arguments(), output_type="np").images
    assert (images[0] == made).all()


def test_what_a_model_cannot_run_is_said_in_a_line(pipe: Any, capsys: pytest.CaptureFixture[str]) -> None:
    fitted = next(side for side in SIDES if side.steps == FITTED)
    bench = Bench(pipe, 1, 2)
    assert cli.sides_of(bench, [fitted], strict=False) == {}
    assert capsys.readouterr().out.startswith("LinearAG                left out: linear_ag: 'emoji-cfg4-20' was fitted")
    with pytest.raises(gs.GuidestackError, match="was fitted for the"):
        cli.sides_of(bench, [fitted], strict=True)
    assert [list(group) for group in cli.sides_of(bench, SIDES[:2], strict=True).values()] == [["unguided", "CFG"]]


def test_stacks_of_the_users_own(pipe: Any) -> None:
    assert chosen(()) == SIDES
    own, known = chosen(("prefix(cfg(4), 1)", "cfg(4)"))
    assert (own.name, known.name) == ("prefix(cfg(4), 1)", "CFG")
    assert found(pipe, own).evaluation_ratio == 5 / 8


def test_peak_memory_is_that_of_the_tensors() -> None:
    def run() -> None:
        first = torch.empty(250_000)
        second = torch.empty(500_000)
        del first
        torch.empty(100_000)
        del second

    assert memory.peak(run) == 4 * (250_000 + 500_000)


def test_a_shaped_model_has_weights_that_answer() -> None:
    small = {"block_out_channels": (8, 8), "norm_num_groups": 2, "layers_per_block": 1, "attention_head_dim": 2,
             "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
             "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), "sample_size": 8}  # fmt: skip
    text = {"hidden_size": 64, "intermediate_size": 16, "num_hidden_layers": 1}
    pipe = models.shaped(small, text)
    latents = pipe("cat", num_inference_steps=2, guidance_scale=4.0, output_type="latent").images
    assert latents.shape == (1, 4, 8, 8)
    assert torch.isfinite(latents).all()
    prompts = [pipe.encode_prompt(one, "cpu", 1, False)[0] for one in ("cat", "dog")]
    assert not torch.equal(*prompts)


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


@pytest.fixture
def _tiny(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "MODELS", (Model(models.BUNDLED, lambda: pipe, (1, 2), steps=2),))
    monkeypatch.setattr(cli, "_over_modular", lambda *given: {"CFG": 0.5})


@pytest.mark.usefixtures("_tiny")
def test_the_command_measures_writes_and_shows(tmp_path: Path) -> None:
    to, made = tmp_path / "deep" / "rows.json", tmp_path / "page.md"
    options = ["--model", "bundled", "--guidance", "cfg(4)", "--guidance", "cfg(4) | rescale(0.7)", "--batch", "2"]
    where = ["--json", str(to), "--page", str(made)]
    done = CliRunner().invoke(bench.command, [*options, "--repeats", "2", "--clock", "cpu", *where])
    assert done.exit_code == 0, done.output
    rows = json.loads(to.read_text())
    assert [(row["stack"], row["batch"]) for row in rows] == [("cfg(4)", 2), ("cfg(4) | rescale(0.7)", 2)]
    for row in rows:
        assert list(row)[:7] == list(KEYS)
        assert row["evaluation_ratio"] == 1
        assert 0 < row["time_low"] <= row["time_ratio"] <= row["time_high"]
        assert row["rounds"] == 2
        assert row["clock"] == "cpu"
        assert 0.9 < row["memory_ratio"] < 1.2
        assert row["guider_ratio"] > 0
        assert line(row) in done.output
    assert [row["modular_ratio"] for row in rows] == [0.5, None]
    assert page.text(rows) == made.read_text()
    shown = CliRunner().invoke(bench.command, ["--from", str(to), "--page", str(tmp_path / "again.md")])
    assert shown.exit_code == 0, shown.output
    assert line(rows[1]) in shown.output
    assert (tmp_path / "again.md").read_text() == made.read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.md", "deep", "page.md"]


@pytest.mark.usefixtures("_tiny")
def test_quick_stops_when_its_time_is_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cli, "QUICK", 0.0)
    monkeypatch.setattr(cli, "chosen", lambda stacks: SIDES[:2])
    to = tmp_path / "rows.json"
    done = CliRunner().invoke(bench.command, ["--quick", "--json", str(to)])
    assert done.exit_code == 0, done.output
    rows = json.loads(to.read_text())
    assert {(row["batch"], row["rounds"], row["modular_ratio"]) for row in rows} == {(1, 1, None)}


@pytest.mark.usefixtures("_tiny")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--guidance", "cgf(4)"], "cfg"),
        (["--guidance", "linear_ag(cfg(4), 'nowhere.safetensors')"], "cannot read the coefficients"),
        (["--model", "./nowhere"], "no model at"),
        (["--from", "nowhere.json"], "cannot read the file of the bench 'nowhere.json'"),
        (["arithmetic", "--page", "x.md"], "bench arithmetic has no --page"),
        (["caches", "--json", "x.json"], "bench caches has no --json"),
        (["edits", "--from", "x.json"], "bench edits has no --from"),
        (["arithmetic", "--guidance", "cfg(3)"], "bench arithmetic has no --guidance"),
        (["install", "--quick"], "bench install has no --quick"),
        (["caches", "--steps", "3"], "bench caches has no --steps"),
        (["start", "--model", "bundled"], "bench start has no --model"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_a_line(options: list[str], message: str) -> None:
    done = CliRunner().invoke(bench.command, options)
    assert isinstance(done.exception, gs.GuidestackError)
    assert message in str(done.exception)
    assert "\n" not in str(done.exception)


def measured_row(**changes: Any) -> dict[str, Any]:
    row = {"model": "m", "stack": "cfg(4) | rescale(0.7)", "batch": 4, "time_ratio": 1.01, "evaluation_ratio": 1.0,
           "efficiency": 0.99, "memory_ratio": 1.0, "name": "n", "negatives": 0, "max_rows": None, "steps": 20,
           "rounds": 9, "time_low": 1.0, "time_high": 1.02, "seconds": 3.0, "added_ms": 0.25, "network_share": 0.9,
           "guider_ratio": 0.5, "modular_ratio": None, "efficiency_limit": 0.98, "clock": "wall", "machine": "M",
           "threads": 1, "torch": "2", "diffusers": "0", "python": "3"}  # fmt: skip
    return row | changes


def test_what_falls_short_is_said() -> None:
    assert short(measured_row()) == []
    assert short(measured_row(efficiency=0.979)) == ["efficiency below 0.98"]
    assert short(measured_row(memory_ratio=1.03)) == ["memory above 1.02"]
    assert short(measured_row(memory_ratio=1.5, evaluation_ratio=1.5)) == []  # of a third condition nobody says so
    assert line(measured_row(efficiency=0.9)).endswith("efficiency below 0.98")
    assert line(measured_row(efficiency=0.9, rounds=2)).endswith("  2 rounds, too few for a verdict")
    assert line(measured_row(steps=20), 3).endswith("  20 steps")


def test_the_page_is_made_of_the_rows() -> None:
    rows = [measured_row(), measured_row(batch=1, negatives=3, max_rows=2, clock="cpu", efficiency=0.9)]
    text = page.text(rows)
    assert "## m, 4 images\n\nM, 1 thread; wall time, medians of 9 rounds of 20 steps; torch 2" in text
    assert (
        "| `cfg(4) \\| rescale(0.7)` | 1.010 (1.000 to 1.020) | 1.000 | 0.990 | 0.900 | 1.000 | 0.25 ms | 0.50 |  |"
        in text
    )
    assert "## m, 1 image, processor time\n\nM, 1 thread; processor time" in text
    assert "`cfg(4) \\| rescale(0.7)`, 3 negatives, max_rows=2: efficiency below 0.98." in text


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "[1]", '[{"model": "m"}]', "[" * 10_000, json.dumps([measured_row(efficiency=math.nan)])]
)
def test_another_file_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "rows.json"
    path.write_text(text)
    with pytest.raises(gs.GuidestackError, match="is not a file of the bench"):
        page.read(path)


def test_the_documentation_is_what_its_rows_say() -> None:
    docs = Path(gs.__file__).parent / "docs"
    parts = "", "-arithmetic", "-merging", "-sweep", "-edits", "-comfyui"
    files = [docs / f"performance{part}.json" for part in parts]
    assert (docs / "performance.md").read_text() == page.text([row for file in files for row in page.read(file)])


def test_the_arithmetic_is_shown_and_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(arithmetic, "SHAPE", SHAPE)
    to = tmp_path / "deep" / "rows.json"
    done = CliRunner().invoke(bench.command, ["arithmetic", "--repeats", "3", "--json", str(to)])
    assert done.exit_code == 0, done.output
    rows = json.loads(to.read_text())
    assert [row["name"] for row in rows] == [side.name for side in arithmetic.SIDES]
    for row in rows:
        assert 0 < row["ratio"]["low"] <= row["ratio"]["median"] <= row["ratio"]["high"]
        assert row["seconds"]["low"] > 0
        assert row["name"] in done.output
    assert [path.name for path in to.parent.iterdir()] == ["rows.json"]


def test_a_row_is_plain_values() -> None:
    timing = Timing(Spread(1, 2, 3), Spread(0.1, 0.2, 0.3))
    row = Row("arithmetic over APG", "n", "cfg(2)", 4, timing, 0.1)
    assert json.loads(json.dumps(row.mapping())) == {
        "what": "arithmetic over APG",
        "name": "n",
        "stack": "cfg(2)",
        "batch": 4,
        "seconds": {"low": 1, "median": 2, "high": 3},
        "ratio": {"low": 0.1, "median": 0.2, "high": 0.3},
        "limit": 0.1,
    }
    assert row.line().endswith("0.200 <= 0.10  exceeded")
