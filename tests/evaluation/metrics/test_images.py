"""Metrics of single images and of pairs, on images made by hand, and against torchmetrics."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest
import torch
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from guidestack.evaluation.metrics import PairMetric, SampleMetric, parse_metric
from guidestack.evaluation.metrics.similarity import SSIM, map_distance
from guidestack.guidance.errors import InputError

RANDOM = np.random.default_rng(7)
NOISE = RANDOM.integers(0, 256, (5, 24, 32, 3), np.uint8)


def plain(*colours: tuple[int, int, int]) -> np.ndarray:
    """Images of one colour each, 12x14."""
    return np.array(colours, np.uint8)[:, None, None].repeat(12, 1).repeat(14, 2)


def measured(text: str, images: np.ndarray) -> np.ndarray:
    metric = parse_metric(text)
    assert isinstance(metric, SampleMetric)
    return metric.measure(images, {}, [""] * len(images), None)


def compared(text: str, images: np.ndarray, others: np.ndarray) -> np.ndarray:
    metric = parse_metric(text)
    assert isinstance(metric, PairMetric)
    return metric.compare(images, others)


def test_saturation_of_plain_colours() -> None:
    images = plain((255, 0, 0), (200, 100, 100), (0, 0, 0), (255, 255, 255), (90, 90, 90), (0, 0, 3))
    assert measured("saturation", images) == pytest.approx([1, 0.5, 0, 0, 0, 1])


def test_saturation_is_the_mean_of_hsv() -> None:
    expected = [np.mean([colorsys.rgb_to_hsv(*pixel / 255)[1] for pixel in image.reshape(-1, 3)]) for image in NOISE]
    assert measured("saturation", NOISE) == pytest.approx(expected, abs=1e-12)


def test_contrast_of_plain_and_halved_images() -> None:
    halved = plain((0, 0, 0), (0, 0, 0), (100, 100, 100))
    halved[0, :6], halved[1, :, :7] = 255, (255, 0, 0)
    assert measured("contrast", halved) == pytest.approx([0.5, 0.299 / 2, 0])


def test_contrast_is_the_deviation_of_the_grey_image() -> None:
    from PIL import Image

    expected = [np.asarray(Image.fromarray(image).convert("L")).std() / 255 for image in NOISE]
    assert measured("contrast", NOISE) == pytest.approx(expected, abs=0.5 / 255)  # grey is rounded there


def test_clipping_counts_pixels_with_a_channel_at_an_end() -> None:
    images = plain((1, 254, 100), (0, 128, 128), (128, 255, 255))
    images[0, :3] = 255
    assert measured("clipping", images) == pytest.approx([0.25, 1, 1])


@pytest.mark.parametrize("text", ["saturation", "contrast", "clipping"])
def test_what_an_image_has_does_not_depend_on_the_others(text: str) -> None:
    together = measured(text, NOISE)
    assert len(set(together)) > 1
    assert [measured(text, image[None])[0] for image in NOISE] == together.tolist()
    assert measured(text, NOISE[::-1]).tolist() == together[::-1].tolist()


@pytest.mark.parametrize("text", ["psnr", "ssim"])
def test_pairs_do_not_depend_on_the_others(text: str) -> None:
    together = compared(text, NOISE, NOISE[::-1])
    alone = [compared(text, one[None], other[None])[0] for one, other in zip(NOISE, NOISE[::-1], strict=True)]
    assert together == pytest.approx(alone, rel=1e-12)


def test_psnr_and_ssim_are_those_of_torchmetrics() -> None:
    others = (NOISE * 0.7 + RANDOM.integers(0, 60, NOISE.shape)).astype(np.uint8)
    one, other = (torch.from_numpy(images).permute(0, 3, 1, 2).double() for images in (NOISE, others))
    ratio = peak_signal_noise_ratio(one, other, data_range=(0.0, 255.0), reduction="none", dim=(1, 2, 3))
    assert compared("psnr", NOISE, others) == pytest.approx(ratio.tolist(), rel=1e-6)
    options = {"data_range": 255.0, "reduction": "none", "return_full_image": True}
    _, everywhere = structural_similarity_index_measure(one, other, **options)  # windows beyond the border as well
    likeness = everywhere[..., 5:-5, 5:-5].mean((1, 2, 3))
    assert compared("ssim", NOISE, others) == pytest.approx(likeness.tolist(), rel=1e-6)


def test_psnr_has_a_closed_form_and_a_cap() -> None:
    grey = plain((100, 100, 100), (100, 100, 100), (0, 0, 0))
    others = plain((105, 105, 105), (100, 100, 100), (255, 255, 255))
    assert compared("psnr", grey, others) == pytest.approx([10 * np.log10(255**2 / 25), 100, 0])
    assert compared("psnr(cap=40)", grey, others)[1] == 40


def test_ssim_has_its_limits() -> None:
    assert compared("ssim", NOISE, NOISE) == pytest.approx([1] * len(NOISE))
    assert (compared("ssim", NOISE, 255 - NOISE) < 0).all()
    # Of two plain images only the means are left: (2ab + c1) / (a^2 + b^2 + c1).
    c1 = (0.01 * 255) ** 2
    found = compared("ssim", plain((50, 50, 50)), plain((200, 200, 200)))
    assert found == pytest.approx([(2 * 50 * 200 + c1) / (50**2 + 200**2 + c1)])
    assert compared("ssim", NOISE, NOISE[::-1]) == pytest.approx(compared("ssim", NOISE[::-1], NOISE))


def test_an_image_below_the_window_is_refused() -> None:
    with pytest.raises(InputError, match="11x11 pixels at least; got 10x24"):
        SSIM().compare(np.zeros((1, 10, 24, 3), np.uint8), np.zeros((1, 10, 24, 3), np.uint8))


def test_map_distance_has_closed_forms() -> None:
    along = np.zeros((1, 3, 2, 2), np.float32)
    along[:, 0] = 5
    across, against = np.roll(along, 1, 1), -along
    assert map_distance([along], [2 * along]) == pytest.approx([0])
    assert map_distance([along], [across]) == pytest.approx([2])
    assert map_distance([along], [against]) == pytest.approx([4])
    half = along.copy()
    half[:, :, 0] = across[:, :, 0]
    assert map_distance([along, along], [half, along]) == pytest.approx(
        [0.5]
    )  # half of the places of half of the layers
