"""What may be wished for, and how a wish that cannot be is answered."""

from __future__ import annotations

import pytest

from guidestack.evaluation.tune.goal import Goal, read_goal
from guidestack.guidance.errors import GuidestackError


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
