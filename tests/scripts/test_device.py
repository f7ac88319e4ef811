"""Where the command line runs: the device, the threads, offloading; and what images say of it."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from guidestack.guidance.errors import InputError
from guidestack.pipelines.models import loading
from guidestack.pipelines.models.files import read_recipe
from guidestack.pipelines.models.generator import Generator
from guidestack.pipelines.models.loading import chosen_device, load, made_with
from guidestack.scripts.studio import Studio

QUICK = ["--steps", "2", "--sampler", "ddim", "--guidance", "cfg(3)"]


@pytest.fixture
def accelerators(monkeypatch: pytest.MonkeyPatch) -> Any:
    """``accelerators("cuda", ...)``: from now on this machine has these."""

    def have(*names: str) -> None:
        monkeypatch.setattr(loading, "check_device", lambda device: None)
        for name, module in (("cuda", torch.cuda), ("xpu", torch.xpu), ("mps", torch.backends.mps)):
            monkeypatch.setattr(module, "is_available", lambda name=name: name in names)

    return have


@pytest.fixture
def _threads() -> Any:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("names", "expected"), [(("cuda", "mps"), "cuda"), (("xpu",), "xpu"), (("mps",), "mps"), ((), "cpu")]
)
def test_the_accelerator_is_the_default(accelerators: Any, names: tuple[str, ...], expected: str) -> None:
    accelerators(*names)
    assert chosen_device(None) == expected
    assert chosen_device("cpu") == "cpu"


@pytest.mark.parametrize("command", ["generate", "edit", "evaluate", "tune", "doctor", "fit_linear_ag"])
def test_what_runs_takes_that_default(
    accelerators: Any, command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model_folder: Path
) -> None:
    """Each loads its model there: what stands in for loading says where that would be."""

    class Asked(Exception):
        pass

    def asked(name: Any, dtype: Any, device: str, *rest: Any, **more: Any) -> Any:
        raise Asked(device)

    for module in ("pipelines.models.generator", "scripts.doctor"):
        monkeypatch.setattr(importlib.import_module(f"guidestack.{module}"), "load", asked)
    accelerators("mps")
    picture, prompts, sweep = tmp_path / "a.png", tmp_path / "a.txt", tmp_path / "a.yaml"
    Image.new("RGB", (64, 64)).save(picture)
    prompts.write_text("a cat\n")
    sweep.write_text("prompts: [a cat]\nstack: cfg(3)\nsteps: 2\nseeds: {each: 1}\n")
    arguments: dict[str, list[object]] = {
        "generate": ["a cat"],
        "edit": [picture, "a cat", "--source", "a dog"],
        "evaluate": [sweep, "--out", tmp_path / "run"],
        "tune": ["--likeness", "ssim>=0.9", "--out", tmp_path / "tune"],
        "doctor": [],
        "fit_linear_ag": ["--prompts", prompts, "--out", tmp_path / "a.safetensors"],
    }
    module = importlib.import_module(f"guidestack.scripts.{command}")
    found = CliRunner().invoke(module.command, list(map(str, arguments[command])))
    assert isinstance(found.exception, Asked), found.output
    assert str(found.exception) == "mps"


@pytest.mark.usefixtures("_threads")
def test_threads_are_torchs_and_stand_in_the_image(model_folder: Path, tmp_path: Path) -> None:
    command = importlib.import_module("guidestack.scripts.generate").command
    images = {}
    for threads in (1, 2):
        out = tmp_path / str(threads)
        given = ["a cat", "--threads", threads, "--device", "cpu", "--model", model_folder, "--out", out, *QUICK]
        assert CliRunner().invoke(command, list(map(str, given)), catch_exceptions=False).exit_code == 0
        assert torch.get_num_threads() == threads
        (path,) = out.glob("*.png")
        assert read_recipe(path)["versions"]["device"] == f"cpu, {threads} thread{'s' * (threads > 1)}"
        images[path.name] = np.asarray(Image.open(path)).astype(int)
        again = ["--like", path, "--device", "cpu", "--model", model_folder, "--out", tmp_path / "again", "--overwrite"]
        found = CliRunner().invoke(command, list(map(str, again)), catch_exceptions=False)
        assert "bits may differ" not in found.output
        torch.set_num_threads(3 - threads)
        found = CliRunner().invoke(command, list(map(str, again)), catch_exceptions=False)
        assert f"here is {dict(made_with('cpu'))}; bits may differ" in found.output
    assert len(images) == 1  # threads are no part of what an image is, as its name has it


@pytest.mark.usefixtures("_threads")
def test_threads_move_a_rare_pixel_by_one() -> None:
    from guidestack import guide, load_emoji

    pipe = load_emoji()
    pipe.set_progress_bar_config(disable=True)
    guided, found = guide(pipe, "cfg(4)"), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        generator = torch.Generator().manual_seed(0)
        found.append(np.asarray(guided("cat face", num_inference_steps=4, generator=generator).images[0]).astype(int))
    away = np.abs(found[0] - found[1])
    assert away.max() <= 1
    assert (away > 0).mean() < 0.01


def test_an_image_of_before_says_nothing_of_a_device(model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    studio = Studio(Generator(str(model_folder), "float32", "cpu"))
    recipe = json.loads(json.dumps({name: one for name, one in studio.generator.versions.items() if name != "device"}))
    made = importlib.import_module("guidestack.pipelines.models.recipe").Recipe(
        "a", "", "", "cfg(3)", "ddim", 2, 0, None, "float32", model=studio.generator.identity, versions=recipe
    )
    studio.check_same(made)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("given", "kept"), [({}, "passive"), ({"OMP_WAIT_POLICY": "active"}, "active")])
def test_threads_do_not_wait_by_spinning(given: dict[str, str], kept: str) -> None:
    """OpenMP reads it when torch is imported, so that it has to be there before."""
    code = """
import os, sys
from guidestack.scripts import cli
assert "torch" not in sys.modules
class Group:
    def main(self, **options):
        print(os.environ["OMP_WAIT_POLICY"], "torch" in sys.modules)
cli.group = Group()
cli.main()
"""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"} | given
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    assert done.stdout.split() == [kept, "False"]


def test_offload_is_for_accelerators(model_folder: Path) -> None:
    with pytest.raises(InputError, match="drop --offload"):
        Generator(str(model_folder), "float32", "cpu", offload=True)


def test_offload_keeps_the_model_on_the_host(model_folder: Path) -> None:
    pipe, _ = load(str(model_folder), torch.float32, "cpu", offload=True)
    assert all(hasattr(part, "_hf_hook") for part in (pipe.unet, pipe.text_encoder))


@pytest.mark.parametrize("offload", [False, True])
def test_a_model_larger_than_the_device(model_folder: Path, offload: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **kwargs: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nOther lines.")

    from diffusers import DiffusionPipeline

    monkeypatch.setattr(DiffusionPipeline, "enable_model_cpu_offload" if offload else "to", full)
    with pytest.raises(InputError, match="out of memory on cpu; the model does not fit; try --dtype float16"):
        load(str(model_folder), torch.float32, "cpu", offload=offload)
