"""Whole tunings of the tiny model: what is written, stopping and going on, and that others reproduce the numbers."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

import guidestack as gs
from guidestack.evaluation.measure import measure
from guidestack.evaluation.metrics import parse_metric
from guidestack.evaluation.progress import Progress
from guidestack.evaluation.prompts import Prompt
from guidestack.evaluation.runner import Options, Prepared, run_sweep
from guidestack.evaluation.store import RunFolder
from guidestack.evaluation.sweep import load_sweep
from guidestack.evaluation.tune.goal import Goal
from guidestack.evaluation.tune.session import Prompts, Settings, Tuning
from guidestack.guidance.errors import GuidestackError, InputError
from guidestack.guidance.presets import load_preset
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


def numbers(folder: Path) -> dict[str, Any]:
    """What was measured, of a training that has ended."""
    return json.loads((folder / "frontier.json").read_text())  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Path:
    """A tuning that nobody disturbed."""
    out = tmp_path_factory.mktemp("tune") / "whole"
    Tuning(settings(model_folder), out).run()
    return out


def test_what_is_chosen_is_a_preset_that_says_what_it_was_verified_on(whole: Path) -> None:
    text = (whole / "tuned.yaml").read_text()
    stack, told = load_preset(whole / "tuned.yaml"), numbers(whole)
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
    with (whole / "frontier.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == sum(len(told[name]) for name in ("tried", "frontier", "fewer_steps", "held_out"))
    assert {row["stack"] for row in rows if row["group"] == "tried"} == {one["stack"] for one in told["tried"]}
    assert b"<svg" in (whole / "frontier.svg").read_bytes()[:500]


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
                "stack": {"reference": "cfg(4)", "tuned": f"@{whole / 'tuned.yaml'}"},
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
    assert load_preset(tmp_path / "tuned.yaml") == load_preset(whole / "tuned.yaml")


def test_a_second_goal_uses_what_was_made(whole: Path, model_folder: Path) -> None:
    """And is verified anew: another stack may be chosen."""
    counting, before = Counting(), numbers(whole)["tried"]
    goal = Goal("ssim", evaluations=4.0)
    verdict = Tuning(settings(model_folder, goal=goal), whole, progress=counting).run()
    assert verdict.point.cost <= 4
    assert [one["stack"] for one in numbers(whole)["tried"]] == [one["stack"] for one in before]
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
        ({"held_out": prompts("red", "b")}, "1 prompts are in the training and in the held-out set, such as 'red'"),
        ({"training": prompts("red")}, "an interval needs two training prompts at least; got 1"),
        ({"held_out": prompts("sea")}, "an interval needs two held-out prompts at least; got 1"),
        ({"reference": gs.parse("cfg(3, against='null@weak')")}, "asks the network 'weak'"),
        ({"reference": gs.parse("schedule(cfg(3), 'g s*')")}, "is a schedule of its own"),
        ({"goal": Goal("ssim", than="cfg(3, against='null@weak')")}, "asks the network 'weak'"),
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


def test_a_likeness_that_is_not_reached_says_the_best_there_is(model_folder: Path, tmp_path: Path) -> None:
    goal = Goal("ssim", 0.9999999, None, 3.0)
    with pytest.raises(InputError) as caught:
        Tuning(settings(model_folder, goal=goal, budget=3), tmp_path).run()
    said = str(caught.value)
    assert said.startswith(
        "none of 3 stacks reaches ssim >= 1 and 3 evaluations at most on the training prompts; the best"
    )
    assert re.search(r"best found is .+, ssim 0\.\d+ \[", said)
    assert len(numbers(tmp_path)["tried"]) == 4  # nothing of it is lost
    assert not (tmp_path / "tuned.yaml").exists()


def test_a_folder_of_another_tuning_is_refused(whole: Path, model_folder: Path) -> None:
    with pytest.raises(InputError, match="is of another tuning: steps is 4 there and 5 here; choose another"):
        Tuning(settings(model_folder, fixed=FIXED | {"steps": 5}), whole)
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
    assert f"use it: --guidance @{tmp_path}/out/tuned.yaml" in result.output
    load_preset(tmp_path / "out" / "tuned.yaml")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--budget", "0", "--evaluations", "9"], "--budget is the number of stacks to try"),
        ([], "say what is wanted"),
        (["--evaluations", "9", "--prompts", "nowhere.txt"], "--prompts: cannot read 'nowhere.txt': No such file"),
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

    training, held_out = prompt_sets({"prompts": "200", "held_out": "200", "model": None, "seed": 0})
    texts = [{one.text for one in one_set.prompts} for one_set in (training, held_out)]
    assert len(training.prompts) == len(held_out.prompts) == 200
    assert not texts[0] & texts[1]
    assert held_out.drawn == (200, 1)
