from __future__ import annotations

import numpy as np
import pytest

from guidestack.evaluation.emoji import pictures
from guidestack.evaluation.emoji.pictures import order, shrink
from guidestack.evaluation.emoji.vocabulary import BACKGROUNDS, STYLES
from guidestack.scripts.dev.emoji.card import copied
from guidestack.scripts.dev.emoji.harvested import Drawing
from guidestack.scripts.dev.emoji.measure import (
    Request,
    Share,
    backgrounds_right,
    copies,
    nearest_distances,
    recognized,
    requests,
)

DRAWINGS = [Drawing(f"thing-{number}", f"thing {number}", (), style) for number in range(8) for style in STYLES]
RGBA = np.random.default_rng(3).integers(0, 256, (len(DRAWINGS), 8, 8, 4), np.uint8).repeat(8, 1).repeat(8, 2)
RGBA[:, :4], RGBA[:, -4:], RGBA[:, :, :4], RGBA[:, :, -4:] = 0, 0, 0, 0  # the background shows at the border


def drawn_as_asked(asked: list[Request]) -> np.ndarray:
    """The reference picture of each request, slightly noisy: a perfect model."""
    index = {(drawing.slug, drawing.style): row for row, drawing in enumerate(DRAWINGS)}
    noise = np.random.default_rng(4).normal(scale=0.05, size=(len(asked), 64, 64, 3))
    shown = [pictures.on_background(RGBA[index[one.slug, one.style]], BACKGROUNDS[one.background]) for one in asked]
    return (np.stack(shown) + noise).astype(np.float32)


def test_a_perfect_model_is_always_right() -> None:
    asked = requests(DRAWINGS, 40, seed=1)
    made = drawn_as_asked(asked)
    assert backgrounds_right(made, asked).value == 1
    assert {share.value for share in recognized(made, asked, RGBA, DRAWINGS, shrink).values()} == {1.0}


def test_a_model_that_ignores_the_prompt_is_right_by_chance() -> None:
    asked = requests(DRAWINGS, 200, seed=1)
    made = drawn_as_asked(requests(DRAWINGS, 200, seed=2))
    shares = recognized(made, asked, RGBA, DRAWINGS, shrink)
    assert backgrounds_right(made, asked).value < 0.2
    assert shares["top1"].value < 0.35
    assert shares["style"].value < 0.45
    assert shares["top1"].right <= shares["top5"].right <= shares["top5_concepts"].right


def test_requests_are_a_prefix_of_longer_ones_and_may_keep_to_a_background() -> None:
    assert requests(DRAWINGS, 10, seed=5) == requests(DRAWINGS, 30, seed=5)[:10]
    assert {one.background for one in requests(DRAWINGS, 10, seed=5, backgrounds=("white",))} == {"white"}
    assert requests(DRAWINGS, 1, seed=5)[0].prompt.endswith("background")


def test_shrinking_averages_squares() -> None:
    picture = np.zeros((1, 64, 64, 3), np.float32)
    picture[0, :2, :4, 1] = 1
    vector = shrink(picture)
    assert vector.shape == (1, 768)
    assert vector[0, 1] == pytest.approx(0.5)
    assert vector.sum() == pytest.approx(0.5)


def test_order_is_by_distance() -> None:
    references = np.array([[0, 0], [3, 0], [1, 1]], np.float32)
    assert order(np.array([[0.9, 0.8], [4, 0]], np.float32), references).tolist() == [[2, 0, 1], [1, 2, 0]]


@pytest.mark.parametrize(
    ("right", "of", "low", "high"), [(250, 500, 0.4563, 0.5437), (500, 500, 0.9924, 1.0), (0, 10, 0.0, 0.2775)]
)
def test_wilson_intervals_are_the_published_ones(right: int, of: int, low: float, high: float) -> None:
    assert Share(right, of).interval() == pytest.approx((low, high), abs=2e-4)


def test_copies_are_near_and_pictures_of_other_concepts_are_not() -> None:
    random = np.random.default_rng(5)
    trained, held_out = (random.integers(0, 256, (count, 8, 8, 4), np.uint8) for count in (30, 50))
    trained[..., 3] = held_out[..., 3] = 255
    backgrounds = ["white", "red"] * 10
    shown = pictures.on_background(trained[:20], (255, 255, 255))
    found = copies(shown, backgrounds, trained, held_out, 0)
    assert found["near"]["share"] == 1
    assert found["made"] == pytest.approx(0, abs=1e-6)
    assert found["bound"] < found["held_out"]
    assert found["pictures"] == 50
    other = pictures.on_background(random.integers(0, 256, (20, 8, 8, 4), np.uint8), (255, 255, 255))
    assert copies(other, backgrounds, trained, held_out, 0)["near"]["share"] < 0.5
    assert "100.0% of the generated pictures" in copied(found)
    assert "has not been measured" in copied(None)


def test_a_distance_is_the_root_mean_square_of_the_pixels() -> None:
    one = np.zeros((1, 2, 2, 3), np.float32)
    others = np.stack([one[0] + 0.5, one[0] + 0.25])
    assert nearest_distances(one, others) == pytest.approx([0.25])
