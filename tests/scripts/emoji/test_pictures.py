from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from guidestack.evaluation.emoji import pictures
from guidestack.evaluation.emoji.vocabulary import BACKGROUNDS
from guidestack.scripts.dev.emoji import harvested
from guidestack.scripts.dev.emoji.harvest import slug_of
from guidestack.scripts.dev.emoji.harvested import Drawing


def square() -> pictures.Pixels:
    """A half transparent red square in the middle of nothing."""
    rgba = np.zeros((64, 64, 4), np.uint8)
    rgba[16:48, 16:48] = (255, 0, 0, 128)
    return rgba


def test_compositing_is_the_share_that_opacity_says() -> None:
    shown = pictures.on_background(square(), (0, 0, 255))
    assert shown.dtype == np.float32
    np.testing.assert_allclose(shown[0, 0], (0, 0, 1))
    np.testing.assert_allclose(shown[32, 32], (128 / 255, 0, 127 / 255), atol=1e-6)


@pytest.mark.parametrize("name", BACKGROUNDS)
def test_every_background_is_recognized_from_the_border(name: str) -> None:
    noise = np.random.default_rng(0).normal(scale=0.02, size=(1, 64, 64, 3))
    shown = (pictures.on_background(square()[None], BACKGROUNDS[name]) + noise).astype(np.float32)
    assert pictures.nearest_colour(pictures.border(shown)) == [name]


def test_pictures_are_kept_with_their_names_and_chosen_by_concept(tmp_path: Path) -> None:
    drawings = [Drawing("cat", "cat", ("pet",), "noto"), Drawing("dog", "dog", (), "flat")]
    pixels = np.stack([square(), square() + 1])
    harvested.save(tmp_path, pixels, drawings)
    kept, names = harvested.load(tmp_path, ("dog",))
    assert names == drawings[1:]
    np.testing.assert_array_equal(kept, pixels[1:])


def test_to_tensor_puts_channels_first_and_white_at_one() -> None:
    tensor = harvested.to_tensor(np.ones((2, 64, 64, 3), np.float32))
    assert tensor.shape == (2, 3, 64, 64)
    assert tensor.is_contiguous()
    assert tensor.min() == tensor.max() == 1


@pytest.mark.parametrize(
    ("label", "slug"), [("cat face", "cat-face"), ("person: bald", "person-bald"), ("Mrs. Claus", "mrs-claus")]
)
def test_slugs(label: str, slug: str) -> None:
    assert slug_of(label) == slug
