"""``guidestack likelihood`` as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from guidestack.pipelines.models.files import write


def test_images_and_their_likelihood(command: Any, model_folder: Path, tmp_path: Path) -> None:
    tones = (np.arange(16 * 16 * 3) * 37 % 256).astype(np.uint8).reshape(16, 16, 3)
    first, odd, mute = tmp_path / "cat.png", tmp_path / "odd.png", tmp_path / "mute.png"
    write(Image.fromarray(tones), first, {"prompt": "a cat"})
    Image.new("RGB", (24, 16)).save(odd)
    Image.fromarray(tones).save(mute)
    how = ("--model", model_folder, "--probes", 2, "--tolerance", 0.3, "--guidance", "cfg(1.5)")
    status, said, err = command("likelihood", first, *how)
    assert status == 0, err
    assert "bits per dimension, log p" in said
    assert "('a cat')" in said
    assert "1 under cfg(1.5):" in said
    assert "of 256 latents, mean" in said
    status, told, err = command("likelihood", mute, "--prompt", "a cat", *how, "--json")
    assert (status, err) == (0, "")
    document = json.loads(told)
    assert list(document) == ["stack", "of", "rows"]
    (row,) = document["rows"]
    assert f"{row['bits']:.4f}" in said  # the same pixels, the same number
    assert row["dimensions"] == 256
    for given, words in (
        ((odd, "--prompt", "a cat"), "has 16x24 pixels and this model makes 16x16"),
        ((mute,), "does not hold the prompt that describes it; give it with --prompt"),
        ((mute, "--prompt", "a cat", "--size", "12x20"), "multiples of 8 pixels; got 12x20 (height x width)"),
        ((tmp_path / "none.png", "--prompt", "a"), "none.png"),
    ):
        status, said, err = command("likelihood", *given, *how)
        assert (status, said) == (2, "")
        assert words in err
        assert err.count("\n") == 1
