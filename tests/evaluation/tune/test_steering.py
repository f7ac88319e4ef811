"""The search of the weights of training-free guidance: the beam, and `guidestack tune --objective`."""

from __future__ import annotations

import csv
import math
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import guidestack as gs
from guidestack.evaluation.store.folder import RunFolder
from guidestack.evaluation.tune.steering import Steered
from guidestack.evaluation.tune.weights import Weights, beam
from guidestack.guidance.errors import InputError
from guidestack.guidance.notation.presets import load_preset
from guidestack.guidance.rule import objectives_of


class Scores:
    """A score with one best place, which counts what it is asked."""

    def __init__(self, rho: float, mu: float, smoothing: float) -> None:
        self.best, self.asked = (rho, mu, smoothing), list[Weights]()

    def __call__(self, some: Sequence[Weights]) -> list[float]:
        self.asked += some
        return [-sum(abs(math.log(a / b)) for a, b in zip(self.of(one), self.best, strict=True)) for one in some]

    @staticmethod
    def of(one: Weights) -> tuple[float, float, float]:
        return one.rho, one.mu, one.smoothing


def test_the_beam_climbs_to_the_best_and_asks_nothing_twice() -> None:
    score = Scores(1.0, 0.5, 0.1)
    ranked = beam(score, 100)
    assert ranked[0] == (Weights(1.0, 0.5, 0.1), 0.0)
    assert [value for _, value in ranked] == sorted((value for _, value in ranked), reverse=True)
    assert len(set(score.asked)) == len(score.asked) == len(ranked)


def test_the_beam_is_that_of_a_straight_loop() -> None:
    score = Scores(2.0, 8.0, 0.001)
    seen: dict[tuple[float, ...], float] = {}

    def value(one: tuple[float, ...]) -> float:
        return -sum(abs(math.log(a / b)) for a, b in zip(one, score.best, strict=True))

    front = [(0.25, 0.25, 0.001)]
    seen[front[0]] = value(front[0])
    for _ in range(6):
        for rho, mu, smoothing in list(front):
            for one in ((min(2 * rho, 8), mu, smoothing), (rho, min(2 * mu, 8), smoothing)):
                seen.setdefault(one, value(one))
            seen.setdefault((rho, mu, min(10 * smoothing, 1)), value((rho, mu, min(10 * smoothing, 1))))
        front = sorted(seen, key=lambda one: -seen[one])[:2]
    ranked = beam(score, 100)
    assert Scores.of(ranked[0][0]) == front[0]
    assert {Scores.of(one) for one, _ in ranked} <= set(seen)


def test_weights_stop_at_their_most() -> None:
    ranked = beam(lambda some: [one.rho + one.mu + one.smoothing for one in some], 1000)
    best = ranked[0][0]
    assert max(best.rho, best.mu) <= 8
    assert best.smoothing <= 1
    assert Weights(8, 8, 1).larger() == []


@pytest.mark.parametrize("budget", [1, 3, 6])
def test_no_more_are_tried_than_the_budget_says(budget: int) -> None:
    score = Scores(8.0, 8.0, 1.0)
    assert len(beam(score, budget)) == len(score.asked) == budget


def test_weights_without_a_score_come_last() -> None:
    ranked = beam(lambda some: [math.nan if one.rho > 0.25 else one.mu for one in some], 20)
    assert ranked[0][0].rho == 0.25
    assert ranked[-1][1] == -math.inf


def test_the_rule_stands_where_it_stood_and_keeps_its_other_parameters() -> None:
    own = Steered(gs.parse("cfg(4) | tfg('blue', mu=3, inner=2)"), "blue")
    assert str(own.steered(Weights(1, 2, 0.1))) == "cfg(4) | tfg('blue', rho=1, mu=2, smoothing=0.1, inner=2)"
    assert str(own.unsteered) == "cfg(4)"
    added = Steered(gs.parse("cfg(4) | tfg('red', mu=3)"), "blue")
    assert str(added.steered(Weights(1, 2, 0.1))).endswith("tfg('red', mu=3) | tfg('blue', rho=1, mu=2, smoothing=0.1)")
    assert added.unsteered == added.stack
    with pytest.raises(InputError, match="two rules steer by 'blue'"):
        Steered(gs.parse("tfg('blue', mu=3) | tfg('blue', mu=2)"), "blue")


def arguments(model: Path, out: Path, *more: object) -> list[Any]:
    prompts = {"prompts": "a cat\nred\n", "held-out": "sea\nb\nc\n"}
    for name, text in prompts.items():
        (out.parent / f"{name}.txt").write_text(text)
    given = [one for name in prompts for one in (f"--{name}", out.parent / f"{name}.txt")]
    return ["tune", "--model", model, *given, "--steps", 2, "--sampler", "ddim", "--device", "cpu", "--out", out, *more]


def written(out: Path) -> Path:
    """The one preset in a folder."""
    (path,) = out.glob("*/steered.yaml")
    return path


def test_the_command_writes_a_preset_with_what_it_was_verified_on(
    model_folder: Path, tmp_path: Path, command: Any
) -> None:
    whole = arguments(model_folder, tmp_path / "out", "--objective", "color('blue', spread=2)", "--budget", 3)
    status, out, err = command(*whole)
    assert status == 0, err
    stack, told = load_preset(path := written(tmp_path / "out")), path.read_text()
    assert "use it: --guidance @" in out
    assert str(stack) in out
    assert re.search(r"log f -[\d.]+ on 3 held-out prompts", told)
    assert "3 weights on 2 other prompts" in told
    with path.with_name("weights.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3
    assert [row["rho"] for row in rows][:2] == ["0.25", "0.5"]
    best = max(rows, key=lambda row: float(row["log f"]))
    assert f"rho={float(best['rho']):g}" in str(stack)
    # The score is the objective's value of the images that were written.
    run = RunFolder(str(tmp_path / "out" / "training"))
    name = next(one["cell"] for one in run.cells()["cells"] if one["stack"] == str(stack))
    pictures = [run.image(one["image"]) for one in run.records().to_pylist() if one["cell"] == name]
    target = np.array([0.0, 0.0, 1.0])
    values = [-((np.asarray(one) / 255 - target) ** 2).sum() / (2 * 2**2) for one in pictures]
    assert np.mean(values) == pytest.approx(float(best["log f"]), rel=1e-5)
    before = path.with_name("weights.csv").read_text()
    assert command(*whole)[0] == 0  # all is there already
    assert path.with_name("weights.csv").read_text() == before


def test_a_picture_of_an_objective_and_a_bound_of_likeness(model_folder: Path, tmp_path: Path, command: Any) -> None:
    first = arguments(model_folder, tmp_path / "plain", "--objective", "blue", "--budget", 1)
    assert command(*first)[0] == 0
    run = RunFolder(str(tmp_path / "plain" / "training"))
    image = run.image(run.records().to_pylist()[0]["image"])
    file = tmp_path / "a (1)=b.png"
    Image.new("RGBA", image.size, (0, 0, 255, 128)).save(file)
    given = ("--objective", f"known(spread=2)={file}", "--budget", 2)
    status, out, err = command(*arguments(model_folder, tmp_path / "out", *given, "--likeness", "ssim>=0.01"))
    assert status == 0, err
    use = shlex.split(out.splitlines()[-1].removeprefix("use it: "))
    assert use[2:] == ["--objective", f"known={file}"]
    assert objectives_of(load_preset(use[1].removeprefix("@"))) == ("known(spread=2)",)
    told = written(tmp_path / "out").read_text()
    assert "ssim >= 0.01" in told
    assert "known(spread=2)" in told
    status, _, err = command(*arguments(model_folder, tmp_path / "strict", *given, "--likeness", "psnr>=90"))
    assert status == 2
    assert "keeps the images as like the unsteered ones as psnr >= 90; ask for less" in err


def test_objectives_share_a_folder_and_keep_their_results(model_folder: Path, tmp_path: Path, command: Any) -> None:
    def search(*more: object) -> tuple[int, str, str]:
        status, out, err = command(*arguments(model_folder, tmp_path / "out", *more))
        return status, out, err

    folder = tmp_path / "out"
    for name in ("blue", "red"):
        assert search("--objective", name, "--budget", 1)[0] == 0
    for name in ("blue", "red"):
        assert objectives_of(load_preset(folder / name / "steered.yaml")) == (name,)
    first = (folder / "blue" / "steered.yaml").read_bytes()
    status, _, err = search("--objective", "blue", "--budget", 1, "--reference", "cfg(2)")
    assert status == 0, err
    assert (folder / "blue" / "steered-1.yaml").read_bytes() == first != (folder / "blue" / "steered.yaml").read_bytes()
    run = RunFolder(str(folder / "training"))
    file = tmp_path / "known.png"
    Image.new("RGBA", run.image(run.records().to_pylist()[0]["image"]).size, (0, 0, 255, 128)).save(file)
    assert search("--objective", f"known={file}", "--budget", 1)[0] == 0
    status, _, err = search("--objective", "blue", "--budget", 1)
    assert status == 2
    assert "training is of another search: it steers to the picture of 'known'; choose another --out" in err


def test_one_held_out_prompt_gives_no_interval(model_folder: Path, tmp_path: Path, command: Any) -> None:
    whole = arguments(model_folder, tmp_path / "out", "--objective", "blue", "--budget", 1)
    (tmp_path / "held-out.txt").write_text("sea\n")
    status, out, err = command(*whole)
    assert status == 0, err
    assert re.search(r"on 1 held-out prompt; unsteered -[\d.]+, the found weights differ by \S+, and one prompt", out)
    assert "nan" not in out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--objective", "blue", "--evaluations", "3"), "--evaluations is for the search of schedules"),
        (("--objective", "blue", "--metric", "ssim"), "--metric is for the search of schedules"),
        (("--objective", "blue", "--likeness", "cfg(2)"), "--likeness is METRIC>=NUMBER or METRIC<=NUMBER"),
        (("--objective", "=x.png"), "--objective is NAME[=FILE]"),
        (("--objective", "blu"), "there is no objective 'blu'"),
        (("--objective", "known"), "the objective 'known' takes a picture"),
        (("--objective", "blue", "--budget", "0"), "--budget is the number of stacks to try"),
        (("--objective", "jpeg"), "has no gradient"),
    ],
)
def test_what_cannot_be_searched_is_one_line(
    model_folder: Path, tmp_path: Path, command: Any, more: tuple[str, ...], message: str
) -> None:
    status, _, err = command(*arguments(model_folder, tmp_path / "out", *more))
    assert status == 2
    assert message in err
    assert not (tmp_path / "out").exists()
