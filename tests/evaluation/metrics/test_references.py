from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from guidestack.evaluation import extractors, references
from guidestack.evaluation.emoji.vocabulary import BACKGROUNDS, STYLES, concepts
from guidestack.evaluation.metrics import frechet, parse_metric
from guidestack.guidance.errors import InputError
from guidestack.scripts.dev.emoji.references import write

from .made import samples


@pytest.fixture
def cheap(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[int]:
    """An extractor that costs nothing, an empty cache, and a list of the batches that were looked at."""
    looked: list[int] = []

    def network(images: np.ndarray) -> np.ndarray:
        looked.append(len(images))
        return images.mean((1, 2), dtype=np.float32)

    monkeypatch.setattr(extractors, "load", lambda text, device="cpu": network)
    monkeypatch.setattr(extractors, "full_name", lambda text: "cheap@1")
    monkeypatch.setenv("GUIDESTACK_CACHE", str(tmp_path / "cache"))
    references._features.cache_clear()
    yield looked
    references._features.cache_clear()


def test_the_pictures_that_ship_are_those_of_every_concept_in_every_style() -> None:
    drawn = references.drawings()
    assert drawn.rgba.shape == (1716, 64, 64, 4)
    assert set(zip(drawn.slugs.tolist(), drawn.styles.tolist(), strict=True)) == {
        (slug, style) for slug in concepts() for style in STYLES
    }
    assert (drawn.rgba[..., 3].max((1, 2)) == 255).all()  # each has something on it
    assert not drawn.rgba[:, :6].any()  # drawn at 52 pixels in the middle


@pytest.mark.parametrize(("count", "styles"), [(3, 1), (45, 2)])
def test_what_is_written_is_read_back_to_the_bit(
    count: int, styles: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rgba = np.zeros((count, 64, 64, 4), np.uint8)
    rgba[:, 20:24, 30:38] = np.random.default_rng(0).integers(
        0, 256, (count, 4, 8, 4), np.uint8
    )  # also where opacity is 0
    slugs = [f"thing-{place // styles}" for place in range(count)]
    names = [list(STYLES)[place % styles] for place in range(count)]
    write(rgba, slugs, names, tmp_path)
    monkeypatch.setattr(references, "HERE", tmp_path)
    found = references.drawings.__wrapped__()
    assert np.array_equal(found.rgba, rgba)
    assert (found.slugs.tolist(), found.styles.tolist()) == (slugs, names)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["emoji.json", "emoji.webp"]


def test_backgrounds_are_dealt_evenly_and_always_the_same() -> None:
    dealt = references.backgrounds(1716)
    assert {dealt.count(name) for name in BACKGROUNDS} == {143}
    assert dealt == references.backgrounds(1716)
    # Pictures are in the order of their concepts and, within these, styles: every style stands on every colour.
    assert len(set(zip(references.drawings().styles.tolist(), dealt, strict=True))) == 4 * 12


def test_a_reference_is_drawn_on_its_backgrounds() -> None:
    for text, colours in (("emoji", references.backgrounds(1716)), ("emoji-blue", ["blue"] * 1716)):
        images = np.concatenate(list(references.find(text).images()))
        assert images.shape == (1716, 64, 64, 3)
        assert images[:, 0, 0].tolist() == [list(BACKGROUNDS[colour]) for colour in colours]


def test_names_say_what_and_how_many(tmp_path: Path) -> None:
    assert references.full_name("emoji") == "emoji-1716-all"
    assert references.full_name("emoji-cyan") == "emoji-1716-cyan"
    for place, name in enumerate(("b.png", "a.webp", "sub/c.JPG", "notes.txt")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        if place < 3:
            Image.new("RGB", (20 + place, 20), (place, 0, 0)).save(tmp_path / name)
    before = references.full_name(str(tmp_path))
    assert before.startswith(f"{tmp_path.name}-3-")
    Image.new("RGB", (50, 50)).save(tmp_path / "b.png")
    assert references.full_name(str(tmp_path)) != before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("emoji-whit", "unknown reference 'emoji-whit'; did you mean 'emoji-white'"),
        ("/nowhere", "the reference '/nowhere' is neither 'emoji' nor a folder of pictures"),
        ("", "is neither"),
    ],
)
def test_a_reference_that_is_not_there_is_one_line(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        parse_metric(f"frechet(reference={text!r})").full_name  # noqa: B018
    assert "\n" not in str(error.value)


def test_an_empty_folder_and_a_broken_picture_are_one_line(tmp_path: Path, cheap: list[int]) -> None:
    with pytest.raises(InputError, match="has 0 pictures"):
        references.find(str(tmp_path))
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"cannot read the image .*a\.png' as PNG or JPEG or WEBP: it is none"):
        references.features(str(tmp_path), "cheap")


def test_pictures_of_a_folder_may_have_any_size(tmp_path: Path, cheap: list[int]) -> None:
    for side, name in ((20, "b.png"), (31, "a.png")):
        Image.new("RGB", (side, 9), (side, 0, 0)).save(tmp_path / name)
    assert references.features(str(tmp_path), "cheap")[:, 0].tolist() == [31, 20]  # by name


def test_features_are_computed_once_and_kept(cheap: list[int], tmp_path: Path) -> None:
    first = references.features("emoji-white", "cheap")
    assert first.shape == (1716, 3)
    assert sum(cheap) == 1716
    references._features.cache_clear()  # as in another process
    assert np.array_equal(references.features("emoji-white", "cheap"), first)
    assert sum(cheap) == 1716
    kept = tmp_path / "cache/references/cheap@1/emoji-1716-white.safetensors"
    kept.write_bytes(b"half a file")
    references._features.cache_clear()
    assert np.array_equal(references.features("emoji-white", "cheap"), first)
    assert sum(cheap) == 2 * 1716


def test_kept_features_of_other_pictures_are_not_used(
    cheap: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    references.features("emoji", "cheap")
    references._features.cache_clear()
    monkeypatch.setattr(references, "_made_of", lambda reference: "other pictures")
    references.features("emoji", "cheap")
    assert sum(cheap) == 2 * 1716


def test_nowhere_to_keep_features_loses_nothing(
    cheap: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GUIDESTACK_CACHE", str(tmp_path / "file"))
    assert references.features("emoji-black", "cheap").shape == (1716, 3)


def test_the_distance_of_a_reference_to_itself_is_0(cheap: list[int]) -> None:
    frechet._target.cache_clear()
    metric = parse_metric("frechet")
    rows = references.features("emoji", "cheap")
    assert abs(metric.prepare(samples(rows))(np.arange(1716))) < 1e-6  # type: ignore[attr-defined]
    frechet._target.cache_clear()
