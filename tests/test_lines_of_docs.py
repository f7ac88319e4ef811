"""Every line of the README and of docs/ that a reader may type is run here, or is named here with the reason why not.

A tiny model stands in the place of the bundled one and of MODEL, so that all lines together take seconds.
"""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from guidestack.pipelines.models import loading
from guidestack.scripts import rules

from .pipelines.tiny import parts
from .scripts.test_parts import hand, ip_adapter_of, lora_of
from .test_commands_in_docs import PAGES, ROOT

NOT_RUN = {
    r"^(make |git clone|pip install|python -m pip|ln -s)": "sets up the machine",
    r"_GUIDESTACK_COMPLETE": "sets up a shell: tests/scripts/test_rule_page.py",
    r"^GUIDESTACK_COMFYUI=|^make gpu-check": "needs a ComfyUI, or a GPU",
    r"torchrun|accelerate launch": "starts processes on several devices: tests/evaluation/test_distributed.py",
    r"^python -m guidestack.scripts.dev": "takes hours, or makes a twin of the bundled model",
    r"configs/claims": "takes hours: a claim of the bundled model",
    r"^guidestack world": "takes a minute each: tests/evaluation/test_world.py",
    r"^guidestack likelihood": "takes minutes: tests/scripts/test_likelihood.py",
    r"^guidestack tune|@out/(tune|blue)": "takes minutes: tests/scripts/test_tune_page.py, tests/evaluation/tune",
    r"^guidestack play": "serves until Ctrl-C: tests/scripts/play/test_page.py",
    r"^guidestack doctor +#": "takes a minute on the bundled model: tests/scripts/test_doctor.py",
    r"slg\(2.5, '7,8,9'\)": "needs a model with these blocks: tests/pipelines/test_edits.py",
    r"^effective scale = ": "is a formula",
}
"""Lines of a shell that are not run here."""
ELSEWHERE = {
    "write-a-rule.md": "tests/test_write_a_rule.py",
    "editing.md": "tests/scripts/test_edit.py",
}
"""Pages whose every line has a test of its own."""
PYTHON_ELSEWHERE = {
    "README.md": "tests/test_readme.py",
    "bridges.md": "tests/test_bridges_page.py",
    "devices.md": "tests/test_devices_page.py",
    "families.md": "tests/pipelines/test_register_family.py",
    **ELSEWHERE,
}
"""Pages whose Python has a test of its own."""
PYTHON_NOT_RUN = {
    r"class (Darkness|FDDinoV2|PickScore)\(": "enters a name for good: tests/evaluation/test_own_rules.py",
    r"gs\.likelihood\(": "takes minutes: tests/pipelines/test_likelihood.py",
    r"my_detector": "is of the reader's own networks",
    r"learn_objective": "takes a minute of gradients: tests/pipelines/test_tokens.py",
    r"KeepOutside": "takes a picture of the reader's: tests/pipelines/test_attention_masks.py",
}
"""Blocks of Python that are not run here."""
CHANGED = [
    (r"^(?:\.venv/bin/)?(?=guidestack |python |accelerate |torchrun )", ""),
    (r"--model [\w.-]+/[\w.-]+", "--model MODEL"),  # no hub
    (r"--model emoji-flow", "--model MODEL"),
    (r" --offload| --device cuda", ""),  # no accelerator
    (r"--size \d+x\d+", "--size 16x16"),
    (
        r"^guidestack doctor",
        "guidestack doctor --no-rules",
    ),  # all rules on all pipelines: tests/pipelines/test_families.py
    (r"guidestack evaluate smoke", "guidestack evaluate smoke.yaml"),
]
"""What is exchanged in a line of a shell."""
SWEEP = """
prompts: {bundled: {count: 2, seed: 0}}
seeds: {each: 1, start: 0}
stack: {cfg: "cfg({w})", apg: "apg({w}, eta=0)"}
axes: {w: [2, 6]}
sampler: ddim
steps: 2
images: png
metrics: [saturation, ssim, evaluations]
baseline: {stack: cfg, w: 2}
"""


def blocks(kinds: tuple[str, ...], but: dict[str, str]) -> list[tuple[str, str]]:
    """The blocks of code of such kinds, each with its page."""
    found = []
    for page in PAGES:
        if page.name not in but:
            for kind, block in re.findall(r"^```(\w*)[^\n]*\n(.*?)^```", page.read_text(encoding="utf-8"), re.S | re.M):
                found += [(page.name, block)] if kind in kinds else []
    return found


def lines() -> list[tuple[str, str]]:
    """The lines that are to be typed into a shell, each with its page and once."""
    found: dict[str, str] = {}
    for page, block in blocks(("", "sh", "bash", "console"), ELSEWHERE):
        for line in block.replace("\\\n", " ").splitlines():
            if line.strip():
                for pattern, instead in CHANGED[:1]:
                    line = re.sub(pattern, instead, line)
                found.setdefault(line, page)
    return [(page, line) for line, page in found.items()]


def test_what_is_not_run_is_there() -> None:
    """No reason stays whose line is gone, and each test that is named is one."""
    for pattern in NOT_RUN:
        assert any(re.search(pattern, line) for _, line in lines()), pattern
    for pattern in PYTHON_NOT_RUN:
        assert any(re.search(pattern, block) for _, block in blocks(("python",), PYTHON_ELSEWHERE)), pattern
    reasons = [*NOT_RUN.values(), *PYTHON_NOT_RUN.values(), *PYTHON_ELSEWHERE.values()]
    named = re.findall(r"tests/[\w/.]*\w", " ".join(reasons))
    assert [name for name in named if not (ROOT / name).exists()] == []
    assert {*PYTHON_ELSEWHERE} <= {page.name for page in PAGES}


@pytest.fixture
def place(model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which everything is that the pages name, and the reader."""
    pipe = hand("sd", {"sd": model_folder})
    parts.controlnet(pipe.unet).save_pretrained(tmp_path / "CONTROLNET")
    pipe.vae.save_pretrained(tmp_path / "VAE")
    shutil.copy(model_folder / "scheduler" / "scheduler_config.json", tmp_path)
    shutil.move(ip_adapter_of(pipe, tmp_path), tmp_path / "ip-adapter_sd15.safetensors")
    weights = lora_of(pipe, tmp_path / "lora")
    for name in ("fur", "style"):
        shutil.copy(weights, tmp_path / f"{name}.safetensors")
    for seed, name in enumerate(("photo.jpg", "edges.png", "look.jpg", "half.png")):
        numbers = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(numbers).save(tmp_path / name)
    Image.fromarray(np.uint8(255 * np.eye(16))).save(tmp_path / "mask.png")
    told = PngImagePlugin.PngInfo()
    told.add_text("parameters", "a cat\nSteps: 2, Sampler: Euler, CFG scale: 3, Seed: 1, Size: 16x16")
    Image.new("RGB", (16, 16)).save(tmp_path / "a1111.png", pnginfo=told)
    for name in ("my-sweep.yaml", "smoke.yaml"):
        (tmp_path / name).write_text(SWEEP)
    (tmp_path / "MODEL").symlink_to(model_folder)
    monkeypatch.setattr(loading, "EMOJI", model_folder)
    monkeypatch.setattr(rules, "STEPS", 2)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_every_line_runs(place: Path, command: Any, monkeypatch: pytest.MonkeyPatch, own_rules: None) -> None:
    """Those of a shell, in the order of the pages, and then those of Python, which read what these left."""
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    failed, ran = [], 0
    for page, line in lines():
        if any(re.search(pattern, line) for pattern in NOT_RUN):
            continue
        if line.startswith(("|", "#")) or not re.match(r"[\w./$(]", line):
            failed.append(f"{page}: {line}: is no line of a shell")
            continue
        for pattern, instead in CHANGED:
            line = re.sub(pattern, instead, line)
        program, *words = shlex.split(line, comments=True)
        if program != "guidestack":
            failed.append(f"{page}: {line}: runs {program}")
            continue
        if "out/IMAGE.png" in words:
            image = next(one for one in sorted((place / "out").glob("*.png")) if one.name != "grid.png")
            words[words.index("out/IMAGE.png")] = str(image)
        status, _, err = command(*words)
        ran += 1
        if status:
            failed.append(f"{page}: {line}: {err.splitlines()[-1:]}")
    monkeypatch.setattr(Image.Image, "show", lambda image: None)
    for page, block in blocks(("python",), PYTHON_ELSEWHERE):
        if any(re.search(pattern, block) for pattern in PYTHON_NOT_RUN):
            continue
        code = re.sub(r"num_inference_steps=\d+", "num_inference_steps=2", block)
        code = re.sub(r".*where pandas is installed", "", code)
        try:
            name = re.sub(r"\W", "_", page)
            module = sys.modules.get(name) or ModuleType(name)
            monkeypatch.setitem(sys.modules, name, module)  # where pickle looks for the classes of a page
            exec(compile(f"import guidestack as gs\n{code}", page, "exec"), vars(module))
        except Exception as error:
            failed.append(f"{page}: {block}: {error!r}")
        ran += 1
    assert failed == [], "\n".join(failed)
    assert ran > 50
