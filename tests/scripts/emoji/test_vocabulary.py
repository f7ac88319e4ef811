from __future__ import annotations

import random

import pytest

from guidestack.evaluation.emoji.vocabulary import BACKGROUNDS, STYLES, caption, concepts
from guidestack.scripts.dev.emoji.harvested import Drawing, random_prompts, training_caption

CAT = Drawing("cat-face", "cat face", ("feline", "kitty", "pet", "whiskers"), "noto")


@pytest.mark.parametrize(
    ("style", "background", "expected"),
    [
        ("noto", "blue", "cat face, noto style, blue background"),
        (None, "blue", "cat face, blue background"),
        ("flat", None, "cat face, flat style"),
        (None, None, "cat face"),
    ],
)
def test_a_caption_names_what_is_given(style: str | None, background: str | None, expected: str) -> None:
    assert caption("cat face", style, background) == expected


def test_training_captions_leave_parts_out_as_often_as_declared() -> None:
    drawn = [training_caption(CAT, "red", random.Random(seed)) for seed in range(4000)]
    asked = [text for text in drawn if text]
    assert len(asked) / len(drawn) == pytest.approx(0.90, abs=0.02)
    assert sum("noto style" in text for text in asked) / len(asked) == pytest.approx(0.90, abs=0.02)
    assert sum("red background" in text for text in asked) / len(asked) == pytest.approx(0.92, abs=0.02)
    assert sum(not text.startswith("cat face") for text in asked) / len(asked) == pytest.approx(0.075, abs=0.02)


def test_the_vocabulary_is_the_documented_one() -> None:
    assert (len(concepts()), len(STYLES), len(BACKGROUNDS)) == (429, 4, 12)
    assert len(set(concepts())) == 429


def test_random_prompts_are_a_prefix_of_more() -> None:
    few, many = random_prompts(5, seed=3), random_prompts(50, seed=3)
    assert many[:5] == few
    assert len(set(many)) > 40
    assert random_prompts(5, seed=4) != few
    assert all(" style, " in prompt and prompt.endswith(" background") for prompt in many)
