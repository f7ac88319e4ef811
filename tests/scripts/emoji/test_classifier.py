"""The classifier of the objective `emoji`: what it is trained on, and how it is measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from guidestack.evaluation.emoji.vocabulary import Request
from guidestack.guidance.objectives.emoji import WEIGHTS, EmojiNetwork
from guidestack.pipelines.models.loading import load
from guidestack.scripts.dev.emoji import classifier


def test_one_picture_of_every_third_concept_is_held_out() -> None:
    held, known = classifier.held_out(), classifier.drawings()
    assert held.sum() == 143 == len(set(known.slugs[held]))
    counts = np.unique(known.styles[held], return_counts=True)[1]
    assert counts.min() >= 35


def test_temperature_and_calibration_error() -> None:
    random = torch.Generator().manual_seed(0)
    right = torch.randn(4000, 5, generator=random)
    truth = torch.multinomial(right.softmax(1), 1, generator=random).flatten()
    assert abs(classifier.temperature(3 * right, truth) - 3) < 0.3
    assert classifier.calibration_error(right, truth) < 0.03 < 0.2 < classifier.calibration_error(5 * right, truth)


def test_pictures_are_softened_as_the_model_makes_them() -> None:
    pipe, _ = load(None, torch.float32, "cpu")
    rows, places = np.arange(2), np.array([0, 3])
    images = classifier.shown(rows, places)
    told = classifier.words()
    truth = classifier.truths(places, rows)
    prompts = [classifier.caption(*classifier.named(told, one)) for one in truth.tolist()]
    assert prompts == ["grinning face, noto style, white background", "grinning face, twemoji style, orange background"]
    for by_denoiser in (False, True):
        soft = classifier.softened(pipe, images, prompts, torch.Generator().manual_seed(0), by_denoiser)
        assert soft.shape == images.shape
        assert 0.01 < float((soft - images).abs().mean()) < 0.2
    pool = {"held": torch.tensor([True, False]), "pictures": classifier.bytes_of(images), "truth": truth}
    net = EmojiNetwork((429, 4, 12))
    loss = classifier.make_loss(net, pool, 4)
    assert torch.equal(loss(3), loss(3))
    assert not torch.equal(loss(3), loss(4))


def test_what_is_drawn_as_asked_is_right_by_the_nearest_drawing() -> None:
    known, told = classifier.drawings(), classifier.labels()
    rows = [0, 5, 90]
    asked = [Request(str(known.slugs[row]), told[known.slugs[row]], str(known.styles[row]), "blue") for row in rows]
    made = (classifier.shown(rows, [6, 6, 6]) / 2 + 0.5).permute(0, 2, 3, 1).numpy()
    assert set(classifier.by_pixels(made, asked).values()) == {1.0}
    truth = classifier.truths([6, 6, 6], rows)
    assert list(truth[:, 2]) == [list(classifier.BACKGROUNDS).index("blue")] * 3


def test_the_weights_are_small_and_in_half_precision() -> None:
    assert Path(WEIGHTS).stat().st_size < 500_000
    assert {value.dtype for value in load_file(WEIGHTS).values()} == {torch.float16}
