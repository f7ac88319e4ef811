"""The sampler of a command that names none: dpm++2m where the model can use it, else the model's own scheduler."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from guidestack.guidance.errors import InputError
from guidestack.pipelines.models import loading
from guidestack.pipelines.models.files import read_recipe
from guidestack.pipelines.models.loading import chosen_sampler

from ..pipelines.tiny import load

QUICK = ["--steps", 2, "--size", "16x16"]


@pytest.fixture(scope="module")
def flow_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("flow")
    load("StableDiffusion3Pipeline").make().save_pretrained(folder)
    return folder


def test_a_flow_model_is_run_with_its_own_scheduler(command: Any, flow_folder: Path, tmp_path: Path) -> None:
    model, guidance = ["--model", flow_folder], ["--guidance", "cfg(3)"]
    assert command("generate", "a cat", *model, *guidance, *QUICK, "--out", tmp_path / "plain")[0] == 0
    (made,) = (tmp_path / "plain").glob("*.png")
    assert read_recipe(made)["sampler"] == "own"
    assert command("generate", "--like", made, *model, "--out", tmp_path / "again")[0] == 0
    named = [*model, *guidance, *QUICK, "--sampler", "flow-euler", "--out", tmp_path / "named"]
    assert command("generate", "a cat", *named)[0] == 0
    (same,) = (tmp_path / "again").glob("*.png")
    (other,) = (tmp_path / "named").glob("*.png")
    pixels = [np.asarray(Image.open(path)) for path in (made, same, other)]
    assert all(np.array_equal(pixels[0], one) for one in pixels[1:])
    assert "in 2 steps of own" in command("explain", "cfg(4)", *model, "--steps", 2)[1]
    refused = command("explain", "cfg(4)", *model, "--sampler", "dpm++2m")[2]
    assert "it can use flow-euler, flow-heun, own" in refused
    edited = command("edit", made, "a dog", *model, *QUICK, "--out", tmp_path / "edited")
    assert edited[0] == 0, edited[2]
    assert read_recipe(next((tmp_path / "edited").glob("*.png")))["sampler"] == "flow-euler"


def test_a_sweep_of_a_flow_model(command: Any, flow_folder: Path, tmp_path: Path) -> None:
    sweep = {"model": str(flow_folder), "stack": "cfg(2)", "prompts": ["a cat"], "steps": 2, "size": "16x16"}
    (tmp_path / "sweep.yaml").write_text(json.dumps(sweep))
    for _ in range(2):  # the second time goes on in the folder
        status, _, err = command("evaluate", tmp_path / "sweep.yaml", "--out", tmp_path / "run")
        assert status == 0, err
    assert "sampler: own" in (tmp_path / "run" / "sweep.yaml").read_text()


def test_a_diffusion_model_keeps_its_default(model_folder: Path, flow_folder: Path, tmp_path: Path) -> None:
    assert chosen_sampler(None, None) == chosen_sampler(None, str(model_folder)) == "dpm++2m"
    assert chosen_sampler(None, str(flow_folder)) == chosen_sampler("Own", None) == "own"
    assert chosen_sampler(None, str(tmp_path)) == "dpm++2m"  # no model, which is said where it is loaded
    assert chosen_sampler(None, str(flow_folder), ["ddim", "flow-heun"]) == "flow-heun"


def test_a_model_on_the_hub_is_asked_for_its_scheduler(flow_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def cached(name: str, file: str) -> str:
        asked.append(name)
        return str(flow_folder / file)

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", cached)
    assert (chosen_sampler(None, "owner/name"), asked) == ("own", ["owner/name"])
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *given: None)
    monkeypatch.setattr(loading, "reachable", lambda name: False)
    with pytest.raises(InputError, match=r"cannot load the model 'owner/name': .*not downloaded before"):
        chosen_sampler(None, "owner/name")


def test_own_is_the_sampler_of_a_model_only(command: Any) -> None:
    from guidestack.samplers import by_name

    with pytest.raises(InputError, match="there is no model here"):
        by_name("own")
    assert command("explain", "cfg(4)", "--steps", 3, "--sampler", "own")[0] == 0
