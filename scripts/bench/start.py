"""Benchmarks of starting: importing the package over torch, and the command's first step over a script of ten lines.

Each is a process of its own, in turn with the one that it is compared with. Both first steps are told by the same hook
on every module's call, in the same runner; the first call of the denoiser ends the process.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import click

from .timing import Spread, interleaved

IMPORT_LIMIT, STEP_LIMIT = 1.2, 1.5
PROMPT = "cat face, noto style, blue background"
SCRIPT = f"""import sys
import torch
from diffusers import StableDiffusionPipeline

pipe = StableDiffusionPipeline.from_pretrained(sys.argv[1])
generator = torch.Generator().manual_seed(0)
image = pipe({PROMPT!r}, num_inference_steps=20, guidance_scale=4.0, generator=generator).images[0]
image.save("image.png")
"""


RUNNER = """import os, runpy, sys
import torch

def stop(module, args):
    if type(module).__name__ == "UNet2DConditionModel":
        os._exit(0)

torch.nn.modules.module.register_module_forward_pre_hook(stop)
sys.argv = sys.argv[1:]
try:
    if sys.argv[0] == "guidestack":
        from guidestack.scripts.cli import main
        main()
    else:
        runpy.run_path(sys.argv[0], run_name="__main__")
except BaseException as error:
    print(repr(error), file=sys.stderr, flush=True)
print("the denoiser was not called", file=sys.stderr, flush=True)
os._exit(3)
"""


def process(code: str, *arguments: str, folder: str | None = None) -> None:
    """Run a program to its end.

    Raises:
        RuntimeError: it fails; the message is what it said last.
    """
    found = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=folder)
    if found.returncode:
        raise RuntimeError(f"ended with {found.returncode}: {found.stderr.strip()[-300:]}")


def imports(repeats: int) -> Spread:
    """Time of a process that imports the package and makes a rule, over one that imports torch."""

    def ours() -> None:
        process("import torch, guidestack; guidestack.CFG(4), guidestack.guide")

    return interleaved(lambda: process("import torch"), {"": ours}, repeats)[""].ratio


def first_steps(model: Path, repeats: int) -> Spread:
    """Time from the start of ``guidestack generate`` to its first call of the denoiser, over that of `SCRIPT`."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "script.py"
        script.write_text(SCRIPT, encoding="utf-8")
        command = ["generate", PROMPT, "--model", str(model), "--guidance", "cfg(4)", "--out", f"{folder}/out"]

        def ours() -> None:
            process(RUNNER, "guidestack", *command, folder=folder)

        def theirs() -> None:
            process(RUNNER, str(script), str(model), folder=folder)

        return interleaved(theirs, {"": ours}, repeats)[""].ratio


def report(model: Path, repeats: int) -> None:
    """Print the ratios of the import and of the first step."""
    found = imports(repeats), first_steps(model, repeats)
    for what, ratio, limit in (
        ("importing guidestack beside torch, over torch alone", found[0], IMPORT_LIMIT),
        ("`guidestack generate` to its first step, over ten lines of diffusers", found[1], STEP_LIMIT),
    ):
        verdict = "" if ratio.median <= limit else "  exceeded"
        click.echo(f"{what}: {ratio}, median of {repeats} <= {limit}{verdict}")
