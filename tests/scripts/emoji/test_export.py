from __future__ import annotations

import json
from pathlib import Path

import click
import pytest
import torch
from safetensors.torch import load_file, save_file

from guidestack.guidance.files import replacing, replacing_folder
from guidestack.scripts.dev.emoji.card import card
from guidestack.scripts.dev.emoji.export import make_portable
from guidestack.scripts.dev.emoji.harvested import Drawing
from guidestack.scripts.dev.emoji.measure import weights_of
from guidestack.scripts.dev.emoji.tokenizer import TOKENS, corpus, train

DRAWINGS = [Drawing("cat-face", "cat face", ("pet",), "noto"), Drawing("red-car", "red car", ("drive",), "flat")]


def test_the_tokenizer_knows_its_words_and_spells_others(tmp_path: Path) -> None:
    tokenizer = train(corpus(DRAWINGS * 3))
    ids = tokenizer("Cat face, blue background", padding="max_length", max_length=TOKENS).input_ids
    assert ids[:6] == tokenizer("cat FACE,  blue background").input_ids[:6]
    assert len(ids) == TOKENS
    assert (ids[0], ids[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert len(tokenizer("zebra").input_ids) > 4
    assert tokenizer.unk_token_id not in tokenizer("zebra é").input_ids[1:-1]


def test_an_export_has_what_both_versions_of_transformers_read(tmp_path: Path) -> None:
    (tmp_path / "text_encoder").mkdir()
    save_file({"encoder.weight": torch.ones(2)}, tmp_path / "text_encoder" / "model.safetensors")
    (tmp_path / "text_encoder" / "config.json").write_text('{"_name_or_path": "/home/me", "width": 2}')
    (tmp_path / "tokenizer").mkdir()
    model = {"vocab": {"c": 0, "at</w>": 1}, "merges": [["c", "at</w>"]]}
    (tmp_path / "tokenizer" / "tokenizer.json").write_text(json.dumps({"model": model}))
    make_portable(tmp_path)
    make_portable(tmp_path)  # the second time changes nothing
    assert set(load_file(tmp_path / "text_encoder" / "model.safetensors")) == {"text_model.encoder.weight"}
    assert json.loads((tmp_path / "text_encoder" / "config.json").read_text()) == {"width": 2}
    assert json.loads((tmp_path / "tokenizer" / "vocab.json").read_text()) == model["vocab"]
    assert (tmp_path / "tokenizer" / "merges.txt").read_text().splitlines()[1:] == ["c at</w>"]


def test_the_card_shows_measured_figures_of_these_weights_only(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    save_file({"weight": torch.ones(2)}, tmp_path / "unet" / "weights.safetensors")
    share = {"right": 46, "of": 50, "share": 0.92, "low": 0.81, "high": 0.97}
    measured = {"weights": weights_of(tmp_path), "shares": {"background": share}}
    measured |= {"prompts": 50, "references": 1716, "scale": 4.0, "steps": 25, "seed": 7}
    (tmp_path / "measured.json").write_text(json.dumps(measured))
    (tmp_path / "made.json").write_text(
        json.dumps({"step": 1000, "seconds": 600, "batch": 16, "rate": 4e-4, "focus": 0.625, "init": True})
    )
    card(tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert "**92.0%** | 81.0% to 97.0%" in text
    assert "at 0.0004 in the last" in text
    assert "19,050 steps in all" in text  # 18,050 of the checkpoint
    assert "| 1,000 | 16 | the 429 concepts, 62.5% of each batch at the levels of the details; 10 minutes |" in text
    save_file({"weight": torch.zeros(2)}, tmp_path / "unet" / "weights.safetensors")
    with pytest.raises(click.ClickException, match="other weights"):
        card(tmp_path)


def test_what_fails_half_way_leaves_the_old_file_and_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "inside").write_text("old")

    def fail_in_file() -> None:
        with replacing(tmp_path / "file") as path:
            path.write_text("new")
            raise RuntimeError

    def fail_in_folder() -> None:
        with replacing_folder(tmp_path / "folder") as path:
            (path / "inside").write_text("new")
            raise RuntimeError

    for fail in (fail_in_file, fail_in_folder):
        with pytest.raises(RuntimeError):
            fail()
    assert (tmp_path / "file").read_text() == (tmp_path / "folder" / "inside").read_text() == "old"
    with replacing_folder(tmp_path / "folder") as path:
        (path / "other").write_text("new")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["file", "folder"]
    assert [one.name for one in (tmp_path / "folder").iterdir()] == ["other"]
