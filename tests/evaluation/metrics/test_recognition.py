"""Concept, style and background: the same as the model's card measures."""

from __future__ import annotations

import numpy as np
import pytest

from guidestack.evaluation import references
from guidestack.evaluation.emoji import pictures
from guidestack.evaluation.emoji.pictures import Place, on_background, shrink, units
from guidestack.evaluation.emoji.vocabulary import BACKGROUNDS, Request, drawn_requests, labels
from guidestack.evaluation.metrics import SampleMetric, parse_metric, recognition
from guidestack.guidance.errors import InputError
from guidestack.scripts.dev.emoji.harvested import Drawing
from guidestack.scripts.dev.emoji.measure import backgrounds_right, recognized

COUNT = 48


@pytest.fixture(scope="module")
def asked() -> list[Request]:
    return drawn_requests(labels(), COUNT, seed=2, backgrounds=("white", "blue"))


@pytest.fixture(scope="module")
def images(asked: list[Request]) -> np.ndarray:
    """Of every three the first as it was asked for, the second faint and noisy, the third of something else."""
    drawn, random = references.drawings(), np.random.default_rng(0)
    shown = []
    for place, request in enumerate(asked):
        row = np.flatnonzero((drawn.slugs == request.slug) & (drawn.styles == request.style))[0]
        row = random.integers(1716) if place % 3 == 2 else row
        image = on_background(drawn.rgba[row], BACKGROUNDS[request.background])
        if place % 3 == 1:
            image = 0.3 * image + 0.7 * image.mean() + random.normal(0, 0.4, image.shape)
        shown.append(image)
    return (np.clip(shown, 0, 1) * 255).round().astype(np.uint8)


def given(asked: list[Request]) -> dict[str, list[str | None]]:
    return {
        "concept": [one.slug for one in asked],
        "style": [one.style for one in asked],
        "background": [one.background for one in asked],
    }


def values(text: str, images: np.ndarray, named: dict[str, list[str | None]], features: object = None) -> np.ndarray:
    metric = parse_metric(text)
    assert isinstance(metric, SampleMetric)
    assert metric.share
    return metric.measure(images, named, [""] * len(images), features)  # type: ignore[arg-type]


def test_shares_are_those_of_the_model_s_card(asked: list[Request], images: np.ndarray) -> None:
    drawn = references.drawings()
    drawings = [Drawing(s, s, (), t) for s, t in zip(drawn.slugs.tolist(), drawn.styles.tolist(), strict=True)]
    shown = images.astype(np.float32) / np.float32(255)
    expected = recognized(shown, asked, drawn.rgba, drawings, shrink)
    found = {text: int(values(text, images, given(asked)).sum()) for text in ("concept", "concept(top=5)", "style")}
    assert found == {
        "concept": expected["top1"].right,
        "concept(top=5)": expected["top5"].right,
        "style": expected["style"].right,
    }
    assert values("background", images, given(asked)).sum() == backgrounds_right(shown, asked).right
    assert COUNT // 4 <= found["concept"] < found["concept(top=5)"] < COUNT


def test_by_features_they_are_those_of_the_card_as_well(
    asked: list[Request], images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    def described(shown: np.ndarray) -> np.ndarray:
        return shown.reshape(len(shown), 8, 8, 8, 8, 3).mean((2, 4)).reshape(len(shown), -1)

    drawn = references.drawings()
    on_white = described(on_background(drawn.rgba, BACKGROUNDS["white"])).astype(np.float32)
    monkeypatch.setattr(references, "features", lambda text, extractor: {"emoji-white": on_white}[text])
    recognition._described.cache_clear()
    drawings = [Drawing(s, s, (), t) for s, t in zip(drawn.slugs.tolist(), drawn.styles.tolist(), strict=True)]
    shown = images.astype(np.float32) / np.float32(255)
    expected = recognized(
        shown, asked, drawn.rgba, drawings, lambda them: units(described(them).astype(np.float32)), on="white"
    )
    features = described(shown).astype(np.float32)
    for text, key in (("concept(by='features', top=5)", "top5"), ("style(by='features')", "style")):
        assert values(text, images, given(asked), features).sum() == expected[key].right
    assert 0 < expected["top5"].right < COUNT
    recognition._described.cache_clear()


def test_pictures_as_they_were_asked_for_are_right_and_the_others_mostly_not(
    asked: list[Request], images: np.ndarray
) -> None:
    right = values("concept", images, given(asked))
    assert right[::3].all()
    assert right[2::3].mean() < 0.2
    assert values("style", images, given(asked))[::3].all()
    assert values("background", images, given(asked))[::3].all()


@pytest.mark.parametrize("text", ["concept", "style", "background"])
def test_what_an_image_is_does_not_depend_on_the_others(text: str, asked: list[Request], images: np.ndarray) -> None:
    together = values(text, images[:12], given(asked[:12]))
    alone = [values(text, images[place : place + 1], given(asked[place : place + 1]))[0] for place in range(12)]
    assert together.tolist() == alone


def test_a_sample_without_its_label_has_no_value(asked: list[Request], images: np.ndarray) -> None:
    named = given(asked[:3])
    named["concept"][1] = named["background"][2] = None
    assert np.isnan(values("concept", images[:3], named)).tolist() == [False, True, True]
    assert np.isnan(values("background", images[:3], named)).tolist() == [False, False, True]


@pytest.mark.parametrize(
    ("label", "value", "message"),
    [
        ("concept", "catface", "no concept 'catface' among the bundled pictures; did you mean"),
        ("background", "teal", "no background 'teal'"),
        ("style", "oil", "no style 'oil'"),
    ],
)
def test_a_label_that_nobody_knows_is_one_line(
    label: str, value: str, message: str, asked: list[Request], images: np.ndarray
) -> None:
    named = given(asked[:1])
    named[label] = [value]
    with pytest.raises(InputError, match=message) as error:
        values("style", images[:1], named)
    assert "\n" not in str(error.value)


def test_images_of_another_size_are_one_line(asked: list[Request]) -> None:
    with pytest.raises(InputError, match="looks at images of 64x64 pixels; got 32x64"):
        values("concept", np.zeros((1, 32, 64, 3), np.uint8), given(asked[:1]))


def test_names_say_how_images_are_compared_and_with_what() -> None:
    assert parse_metric("concept").full_name == "concept[16x16 pixels, reference=emoji-1716-as-asked, top=1]"
    assert parse_metric("style(by='features')").full_name == (
        "style[efficientnet-lite0@128-bicubic-aa, reference=emoji-1716-white]"
    )
    assert parse_metric("concept(by='features')").extractor == "efficientnet-lite0"
    assert parse_metric("concept").extractor is None


def test_pictures_are_counted_and_not_concepts(monkeypatch: pytest.MonkeyPatch) -> None:
    # The four nearest pictures are of one other concept: the fifth picture, and the second concept.
    monkeypatch.setattr(recognition.Concept, "places", lambda *given: [Place(picture=4, concept=1, style="flat")])
    found = [values(f"concept(top={top})", np.zeros((1, 64, 64, 3), np.uint8), {})[0] for top in (2, 4, 5)]
    assert found == [0, 0, 1]


def test_places_are_counted_among_pictures_and_among_concepts() -> None:
    slugs, styles = np.array(["b", "b", "c", "a", "a"]), np.array(["flat", "noto", "flat", "noto", "flat"])
    assert pictures.place(np.array([1, 0, 2, 4, 3]), slugs, styles, "a") == Place(3, 2, "flat")
    assert pictures.place(np.array([3, 1, 0, 2, 4]), slugs, styles, "a") == Place(0, 0, "noto")
