"""Whole tunings of the tiny model: what is written, stopping and going on, and that others reproduce the numbers."""

from __future__ import annotations

import csv
import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import CliRunner

import guidestack as gs
from guidestack.evaluation.analysis.measure import measure
from guidestack.evaluation.metrics import parse_metric
from guidestack.evaluation.run.progress import Progress
from guidestack.evaluation.run.runner import Options, Prepared, run_sweep
from guidestack.evaluation.spec.prompts import Prompt
from guidestack.evaluation.spec.sweep import load_sweep
from guidestack.evaluation.store.folder import RunFolder
from guidestack.evaluation.tune import preset as presets
from guidestack.evaluation.tune.frontier import Point
from guidestack.evaluation.tune.goal import Goal
from guidestack.evaluation.tune.session import Tuning
from guidestack.evaluation.tune.settings import Prompts, Settings
from guidestack.guidance.errors import GuidestackError, InputError
from guidestack.guidance.notation.presets import TunedFor, load_preset, tuned_for
from guidestack.pipelines.models.loading import fingerprint
from guidestack.scripts.cli import group

FIXED = {"sampler": "ddim", "steps": 4, "size": None, "dtype": "float32", "batch": 8}
BUDGET = 10  # two rounds


def prompts(*texts: str, start: int = 0) -> Prompts:
    return Prompts(tuple(map(Prompt, texts)), start)


def settings(model: Path, **changed: Any) -> Settings:
    whole: dict[str, Any] = {
        "model": str(model),
        "reference": gs.parse("cfg(4)"),
        "goal": Goal("ssim", 0.5),
        "training": prompts("a cat", "red", start=3),
        "held_out": prompts("sea", "b", "c", start=50),
        "fixed": FIXED,
        "budget": BUDGET,
        **changed,
    }
    return Settings(**whole)


ALIKE = "ssim-at-least-0.5"
"""What the results of the goal above are called after."""


def numbers(folder: Path, goal: str = ALIKE) -> dict[str, Any]:
    """What was measured for a goal, of a training that has ended."""
    return json.loads((folder / goal / "frontier.json").read_text())  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Path:
    """A tuning that nobody disturbed."""
    out = tmp_path_factory.mktemp("tune") / "whole"
    Tuning(settings(model_folder), out).run()
    return out


def test_what_is_chosen_is_a_preset_that_says_what_it_was_verified_on(whole: Path) -> None:
    text = (whole / ALIKE / "tuned.yaml").read_text()
    stack, told = load_preset(whole / ALIKE / "tuned.yaml"), numbers(whole)
    (verified, fewer) = told["held_out"]
    assert str(stack) == verified["stack"]
    assert verified["evaluations"] < 8
    assert verified["prompts"] == 3
    assert verified["ssim_low"] >= 0.5
    comments = " ".join(line.lstrip("# ") for line in text.splitlines() if line.startswith("#"))
    assert f"Tuned: {verified['evaluations']:.4g} network evaluations an image instead of the 8 of cfg(4)." in comments
    assert f"{verified['ssim']:.4g} [{verified['ssim_low']:.4g}, {verified['ssim_high']:.4g}]" in comments
    assert "Wanted: ssim >= 0.5. Verified on 3 held-out prompts, seeds 50 and on" in comments
    assert f"fewer steps of the reference: cfg(4), {fewer['steps']} steps" in comments
    assert fewer["evaluations"] <= verified["evaluations"]
    for version in ("guidestack", "torch", "diffusers"):
        assert f"{version} {told['versions'][version]}" in comments
    assert re.search(r"made: \d{4}-\d\d-\d\d by guidestack tune", comments)


def test_what_was_measured_is_written_in_three_forms(whole: Path) -> None:
    told = numbers(whole)
    assert len(told["tried"]) == BUDGET + 1
    assert [one["steps"] for one in told["fewer_steps"]] == [3, 2, 1]
    assert told["tried"][0] | {"stack": "cfg(4)", "ssim": 1.0, "evaluations": 8.0} == told["tried"][0]
    costs = [one["evaluations"] for one in told["frontier"]]
    assert costs == sorted(costs)
    with (whole / ALIKE / "frontier.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == sum(len(told[name]) for name in ("tried", "frontier", "fewer_steps", "held_out"))
    assert {row["stack"] for row in rows if row["group"] == "tried"} == {one["stack"] for one in told["tried"]}
    drawn = (whole / ALIKE / "frontier.svg").read_bytes()
    assert b"<svg" in drawn[:500]
    assert b"mathdefault" not in drawn


def test_its_records_are_those_of_a_sweep(whole: Path) -> None:
    for name, prompt_count in (("training", 2), ("held-out", 3)):
        run = RunFolder(whole / name)
        stacks = list(run.sweep().stacks)
        assert len(run.records()) == prompt_count * len(stacks)
        table = measure(run, [parse_metric("ssim"), parse_metric("evaluations")])
        assert set(table.column("samples").to_pylist()) == {prompt_count}


def test_evaluate_reproduces_the_likeness_from_a_clean_folder(whole: Path, model_folder: Path, tmp_path: Path) -> None:
    """The preset by its path, the held-out prompts and seeds: a sweep that anybody could write."""
    (tmp_path / "sweep.yaml").write_text(
        yaml.safe_dump(
            {
                "model": str(model_folder),
                "prompts": ["sea", "b", "c"],
                "seeds": {"each": 1, "start": 50},
                "stack": {"reference": "cfg(4)", "tuned": f"@{whole / ALIKE / 'tuned.yaml'}"},
                "sampler": "ddim",
                "steps": 4,
                "metrics": ["ssim", "evaluations"],
                "baseline": "cfg(4)",
            }
        )
    )
    sweep = load_sweep(str(tmp_path / "sweep.yaml"))
    run = RunFolder(tmp_path / "run")
    run_sweep(Prepared(sweep, Options()), run)
    found = measure(run, [parse_metric("ssim"), parse_metric("evaluations")]).to_pylist()
    verified = numbers(whole)["held_out"][0]
    assert found[2]["value"] == pytest.approx(verified["ssim"], abs=1e-3)
    assert found[3]["value"] == verified["evaluations"]


class Stopping(Progress):
    """Ctrl-C after so many images."""

    def __init__(self, images: int) -> None:
        self.left = images

    def made(self, count: int, evaluations: int) -> None:
        self.left -= count
        if self.left <= 0:
            raise KeyboardInterrupt


class Counting(Progress):
    images = 0

    def made(self, count: int, evaluations: int) -> None:
        self.images += count


def test_a_tuning_that_is_stopped_goes_on_to_the_same_end(whole: Path, model_folder: Path, tmp_path: Path) -> None:
    all_images = sum(len(RunFolder(folder).records()) for folder in whole.iterdir() if folder.is_dir())
    for images in (1, 5, 20):
        with pytest.raises(KeyboardInterrupt):
            Tuning(settings(model_folder), tmp_path, progress=Stopping(images)).run()
    there = sum(len(RunFolder(folder).addresses()) for folder in tmp_path.iterdir() if folder.is_dir())
    assert 0 < there < all_images
    counting = Counting()
    Tuning(settings(model_folder), tmp_path, progress=counting).run()
    assert counting.images == all_images - there  # nothing is made twice
    for name in ("tried", "frontier", "fewer_steps", "held_out"):
        mine, others = numbers(tmp_path)[name], numbers(whole)[name]
        assert [one["stack"] for one in mine] == [one["stack"] for one in others]
        for one, other in zip(mine, others, strict=True):
            assert one["ssim"] == pytest.approx(other["ssim"], abs=1e-3)
            assert one["evaluations"] == other["evaluations"]
    assert load_preset(tmp_path / ALIKE / "tuned.yaml") == load_preset(whole / ALIKE / "tuned.yaml")


def test_a_second_goal_uses_what_was_made(whole: Path, model_folder: Path) -> None:
    """And is verified anew: another stack may be chosen."""
    counting, before, first = Counting(), numbers(whole)["tried"], (whole / ALIKE / "tuned.yaml").read_bytes()
    goal = Goal("ssim", evaluations=4.0)
    verdict = Tuning(settings(model_folder, goal=goal), whole, progress=counting).run()
    assert verdict.point.cost <= 4
    assert [one["stack"] for one in numbers(whole, "ssim-in-4")["tried"]] == [one["stack"] for one in before]
    assert load_preset(whole / "ssim-in-4" / "tuned.yaml") == gs.parse(verdict.point.stack)
    assert (whole / ALIKE / "tuned.yaml").read_bytes() == first  # nothing of the first goal is lost
    assert numbers(whole)["goal"] == "ssim >= 0.5"
    assert counting.images <= 2 * 3  # held-out images of one more stack, and of one more number of steps


def test_what_is_not_measured_yet_is_measured(whole: Path, model_folder: Path) -> None:
    (whole / "training" / "measured.json").write_bytes(b'{"cut off')
    before = numbers(whole)
    Tuning(settings(model_folder), whole).run()
    assert numbers(whole)["tried"] == before["tried"]


# --- what cannot be --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"budget": 0}, "--budget is the number of stacks to try, 1 at least; got 0"),
        ({"held_out": prompts("red", "b")}, "1 prompt is in the training and in the held-out set, such as 'red'"),
        ({"training": prompts("red")}, "an interval needs two training prompts at least; got 1"),
        ({"held_out": prompts("sea")}, "an interval needs two held-out prompts at least; got 1"),
        ({"reference": gs.parse("cfg(3, against='null@weak')")}, "asks the network 'weak'"),
        ({"reference": gs.parse("schedule(cfg(3), 'g s*')")}, "is a schedule of its own"),
        ({"goal": Goal("ssim", than="cfg(3, against='null@weak')")}, "asks the network 'weak'"),
        ({"goal": Goal("ssim", than="cfg(4)")}, "--likeness 'cfg(4)' is the reference itself"),
        ({"goal": Goal("ssim", evaluations=0.5)}, "--evaluations 0.5 cannot be reached: the cheapest plan of cfg(4)"),
        ({"coefficients": "emoji-cfg4-20"}, "was fitted for the"),
        ({"fixed": FIXED | {"sampler": "dddim"}}, "did you mean 'ddim'"),
    ],
)
def test_what_cannot_be_is_one_clear_line(
    model_folder: Path, tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(GuidestackError) as caught:
        Tuning(settings(model_folder, **changed), tmp_path / "out").run()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("*.png"))  # before anything is made
    assert not (tmp_path / "out").exists()


def test_a_likeness_that_is_not_reached_says_the_best_there_is(model_folder: Path, tmp_path: Path) -> None:
    goal = Goal("ssim", 0.9999999, None, 3.0)
    with pytest.raises(InputError) as caught:
        Tuning(settings(model_folder, goal=goal, budget=3), tmp_path).run()
    said = str(caught.value)
    assert said.startswith(
        "none of 3 stacks reaches ssim >= 1 and 3 evaluations at most on the training prompts; the best"
    )
    assert re.search(r"best found is .+, ssim 0\.\d+ \[", said)
    assert len(numbers(tmp_path, goal.name)["tried"]) == 4  # nothing of it is lost
    assert not list(tmp_path.rglob("tuned.yaml"))


def test_a_stack_that_changes_nothing_is_no_goal(model_folder: Path, tmp_path: Path) -> None:
    """Nothing cheaper is as alike as what equals the reference: refused once that shows, before the search."""
    goal = Goal("ssim", than="cfg(4) | rescale(0)")
    with pytest.raises(InputError, match=r"images of cfg\(4\) \| rescale\(0\) equal those of the reference"):
        Tuning(settings(model_folder, goal=goal), tmp_path).run()
    assert set(RunFolder(tmp_path / "training").sweep().stacks) == {"cfg(4)", goal.than}


def test_another_stack_for_the_same_goal_loses_nothing(whole: Path, model_folder: Path) -> None:
    path = whole / ALIKE / "tuned.yaml"
    other = path.read_bytes().replace(b"scale: 4.0", b"scale: 5.0")
    path.write_bytes(other)
    said: list[str] = []
    Tuning(settings(model_folder), whole, say=said.append).run()
    assert (whole / ALIKE / "tuned-1.yaml").read_bytes() == other
    assert any("kept as" in line and "tuned-1.yaml" in line for line in said)
    Tuning(settings(model_folder), whole).run()
    assert not (whole / ALIKE / "tuned-2.yaml").exists()  # the same stack again


def test_a_preset_says_what_it_is_for(whole: Path, model_folder: Path) -> None:
    assert tuned_for(whole / ALIKE / "tuned.yaml") == TunedFor(str(model_folder), "ddim", 4, fingerprint(model_folder))


def test_a_folder_of_another_tuning_is_refused(whole: Path, model_folder: Path) -> None:
    with pytest.raises(InputError, match="is of another tuning: steps is 4 there and 5 here; choose another"):
        Tuning(settings(model_folder, fixed=FIXED | {"steps": 5}), whole)
    with pytest.raises(InputError, match=r"is of another tuning: the reference is cfg\(4\) there and cfg\(3\) here"):
        Tuning(settings(model_folder, reference=gs.parse("cfg(3)")), whole)
    with pytest.raises(InputError, match="is of another tuning: prompt 2 is 'red' there and 'blue' here"):
        Tuning(settings(model_folder, training=prompts("a cat", "blue", start=3)), whole)


def test_a_network_without_an_unconditional_branch_is_refused(unconditional: Any, tmp_path: Path) -> None:
    unconditional.save_pretrained(tmp_path / "model")
    with pytest.raises(GuidestackError) as caught:
        Tuning(settings(tmp_path / "model"), tmp_path / "out")
    assert "cfg(4)" in str(caught.value)
    assert "\n" not in str(caught.value)


# --- the command ----------------------------------------------------------------------------------------------------


def test_the_command_tunes(model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("a cat\nred\n")
    (tmp_path / "held.jsonl").write_text('"sea"\n{"prompt": "b"}\n')
    arguments = ["tune", "--model", model_folder, "--prompts", tmp_path / "train.txt"]
    arguments += ["--held-out", tmp_path / "held.jsonl", "--steps", 3, "--sampler", "ddim", "--budget", 2]
    arguments += ["--likeness", "ssim>=0.2", "--out", tmp_path / "out"]
    result = CliRunner().invoke(group, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "evaluations instead of 6" in result.output
    path = tmp_path / "out" / "ssim-at-least-0.2" / "tuned.yaml"
    assert f"@{path}" in result.output or f"(the preset is {path})" in result.output
    assert f"measured: {path.parent}/frontier.csv" in result.output
    made, of = map(int, re.findall(r"(\d+)/(\d+) \[", result.output)[-1])
    assert made == of > 0  # the bar ends where the work does
    load_preset(path)


def test_without_the_search_library_nothing_begins(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "optuna" else real(name, *rest)
    )
    monkeypatch.setattr("guidestack.evaluation.tune.session.generator_of", lambda *_: pytest.fail("a model was loaded"))
    with pytest.raises(InputError, match=re.escape("tune needs optuna: pip install 'guidestack[tune]'")):
        Tuning(settings(model_folder), tmp_path / "out")
    result = CliRunner().invoke(group, ["tune", "--evaluations", "9", "--out", str(tmp_path / "out")])
    assert isinstance(result.exception, InputError)
    assert str(result.exception) == "tune needs optuna: pip install 'guidestack[tune]'"
    assert not (tmp_path / "out").exists()


def test_ctrl_c_at_the_start_says_that_the_same_command_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("guidestack.evaluation.tune.session.generator_of", stopped)
    result = CliRunner().invoke(group, ["tune", "--evaluations", "9", "--out", str(tmp_path / "out")])
    assert "stopped before the search began; run the same command again to continue" in result.output
    assert result.exit_code != 0
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("ahead", "advised", "preset"),
    [
        (1, "use it: --guidance @out/x/tuned.yaml", True),
        (0, "use it: --guidance @out/x/tuned.yaml; fewer steps, at 4 evaluations, are not told apart from it", True),
        (-1, "take fewer steps instead, which are more alike at 4 evaluations: --guidance 'cfg(4)' --steps 2", False),
    ],
)
def test_what_is_worse_than_fewer_steps_is_not_advised(ahead: int, advised: str, preset: bool) -> None:
    def point(stack: str, steps: int, *values: float) -> Point:
        return Point(stack, steps, np.full(3, 4.0), {"ssim": np.array(values)}, np.arange(3))

    fewer = point("cfg(4)", 2, 0.5, 0.6, 0.7)
    tuned = point("x", 4, *(value + ahead * 0.1 for value in (0.5, 0.6, 0.7)))
    assert presets.ahead(tuned, fewer, "ssim", 1) == ahead
    verdict = presets.Verdict(tuned, True, "", fewer, ahead)
    assert verdict.advice(Path("out/x/tuned.yaml")).startswith(advised)
    assert ("use it" in verdict.advice(Path("out/x/tuned.yaml"))) is preset


def test_the_verdict_of_a_tuning_knows_fewer_steps(whole: Path, model_folder: Path) -> None:
    verdict = Tuning(settings(model_folder), whole).run()
    assert verdict.fewer is not None
    assert verdict.fewer.steps == numbers(whole)["held_out"][1]["steps"]
    assert verdict.ahead == presets.ahead(verdict.point, verdict.fewer, "ssim", 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--budget", "0", "--evaluations", "9"], "--budget is the number of stacks to try"),
        ([], "say what is wanted"),
        (
            ["--evaluations", "9", "--prompts", "nowhere.txt"],
            "cannot read the file of --prompts 'nowhere.txt': No such file",
        ),
        (["--evaluations", "9", "--model", "x", "--prompts", "12"], "draws prompts for the bundled model"),
        (["--evaluations", "9", "--reference", "cfq(4)"], "did you mean 'cfg'"),
        (["--evaluations", "9", "--size", "64"], "64"),
    ],
)
def test_a_wrong_argument_is_one_clear_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(group, ["tune", "--out", str(tmp_path / "out"), *arguments])
    assert isinstance(result.exception, GuidestackError), result.output
    assert message in str(result.exception)
    assert "\n" not in str(result.exception)
    assert not (tmp_path / "out").exists()


def test_prompts_that_are_drawn_do_not_overlap() -> None:
    from guidestack.scripts.tune import prompt_sets

    training, held_out = prompt_sets("200", "200", None, 0)
    texts = [{one.text for one in one_set.prompts} for one_set in (training, held_out)]
    assert len(training.prompts) == len(held_out.prompts) == 200
    assert not texts[0] & texts[1]
    assert held_out.drawn == (200, 1)
