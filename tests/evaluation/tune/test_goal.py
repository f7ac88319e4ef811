"""What may be wished for, and how a wish that cannot be is answered."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from guidestack.evaluation.metrics.similarity import PSNR, SSIM, FeatureDistance
from guidestack.evaluation.tune.goal import Goal, read_goal
from guidestack.evaluation.tune.preset import preset_bytes
from guidestack.guidance.errors import GuidestackError
from guidestack.guidance.notation.presets import TunedFor, load_preset, tuned_for


@pytest.mark.parametrize(
    ("given", "goal"),
    [
        (("ssim>=0.97", None), Goal("ssim", 0.97)),
        ((" feature_distance <= 0.05", 25.0), Goal("feature_distance", 0.05, None, 25.0)),
        ((None, 25.0), Goal("feature_distance", evaluations=25.0)),
        ((None, 25.0, "ssim"), Goal("ssim", evaluations=25.0)),
        (("prefix(cfg(4),  12)", None, "ssim"), Goal("ssim", than="prefix(cfg(4), 12)")),
        (("psnr(cap=60)>=30", None), Goal("psnr(cap=60)", 30.0)),
    ],
)
def test_a_goal_is_read(given: tuple[str | None, ...], goal: Goal) -> None:
    assert read_goal(*given) == goal  # type: ignore[arg-type]
    assert goal.metric in str(goal) or goal.evaluations is not None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((None, None), "say what is wanted: --likeness"),
        ((None, 0.0), "--evaluations is 1 at least"),
        (("ssim>=2", None), "cannot be reached: equal images have ssim 1"),
        (("feature_distance<=-1", None), "cannot be reached: equal images have feature_distance 0"),
        (("psnr(cap=60)>=61", None), "cannot be reached: equal images have psnr(cap=60) 60"),
        (("feature_distance<=0", None), "is of images equal to the reference's, which only the reference makes"),
        (("ssim>=1", None), "is of images equal to the reference's, which only the reference makes"),
        (("ssim<=0.9", None), "of ssim, more is more alike"),
        (("ssim>=1.2.3", None), "'1.2.3' is no number"),
        (("simm>=0.9", None), "did you mean 'ssim'"),
        (("saturation>=0.9", None), "'saturation' does not compare an image with another"),
        (("ssim>=0.9", None, "psnr"), "name two metrics"),
        (("cfq(4)", None), "--likeness is METRIC>=NUMBER, METRIC<=NUMBER or a stack: "),
        (("@nowhere", None), "no preset 'nowhere'"),
    ],
)
def test_a_wrong_goal_is_one_clear_line(given: tuple[str | None, ...], message: str) -> None:
    with pytest.raises(GuidestackError) as caught:
        read_goal(*given)  # type: ignore[arg-type]
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_each_goal_has_a_name_of_its_own_that_is_fit_for_a_path() -> None:
    given: list[tuple[str | None, float | None, str | None]] = [
        (None, 12, None), (None, 12.5, None), (None, 8, None), (None, 12, "ssim"), (None, 12, "psnr(cap=60)"),
        (None, 12, "psnr(cap=6)"), ("ssim>=0.97", None, None), ("ssim>=0.9700000001", None, None),
        ("ssim>=0.97", 12, None), ("prefix(cfg(4), 12)", None, None), ("prefix(cfg(4), 1) | cfg(2)", None, None),
        ("prefix(cfg(4), 12)", None, "ssim"), ("cfg(41) | rescale(0.2)", None, None),
        ("cfg(4) | rescale(1)" + " | rescale(0)" * 20, None, None), ("cfg(4)" + " | rescale(0)" * 21, None, None),
    ]  # fmt: skip
    names = [read_goal(*one).name for one in given]
    assert len(set(names)) == len(names)
    assert names[0] == "feature_distance-in-12"
    assert names[6] == "ssim-at-least-0.97"
    for name in names:
        assert len(name) < 100
        assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*", name)


def test_equal_images_have_the_number_that_the_metric_says() -> None:
    """A field called `cap` means nothing by itself."""

    @dataclass(frozen=True)
    class Capped(SSIM):
        cap: float = 0.5

    assert (PSNR(60).best, SSIM().best, FeatureDistance().best, Capped().best) == (60, 1, 0, 1)


def test_a_preset_keeps_the_name_of_its_model(tmp_path: Path) -> None:
    tuned = TunedFor("A & B", "ddim", 4)
    (tmp_path / "tuned.yaml").write_bytes(preset_bytes("cfg(4)", ["a & b: *c"], {"d & e": "1 & 2"}, tuned))
    assert tuned_for(tmp_path / "tuned.yaml") == tuned
    assert str(load_preset(tmp_path / "tuned.yaml")) == "cfg(4)"
