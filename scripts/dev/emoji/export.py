"""Assemble the trained parts into a stock ``StableDiffusionPipeline`` folder in half precision."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from ....guidance.files import replacing_folder
from ....pipelines.models.bundled import FLOW
from .denoiser import averaged, new_scheduler


def assemble(work: Path, init: Path | None, flow: bool = False) -> tuple[Any, dict[str, Any]]:
    """The pipeline with the averaged weights of the checkpoint, in float32, and how they were made."""
    from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, StableDiffusionPipeline

    tokenizer, text_encoder, unet, made = averaged(work, init, flow)
    own = FLOW if flow else {}
    pipe = StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(work / "vae", local_files_only=True),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DPMSolverMultistepScheduler.from_config(new_scheduler().config, **own),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return pipe, made


def make_portable(folder: Path) -> None:
    """Make a saved pipeline load everywhere: no paths of this machine, and what transformers 4 needs beside 5's."""
    for path in folder.glob("*/*.json"):
        config = json.loads(path.read_text())
        if config.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(config, indent=2) + "\n")
    weights = folder / "text_encoder" / "model.safetensors"
    tensors = load_file(weights)
    # transformers 5 drops the prefix that 4 requires, and reads both; 4 would start from random weights without it.
    named = {key if key.startswith("text_model.") else f"text_model.{key}": value for key, value in tensors.items()}
    save_file(named, weights, {"format": "pt"})
    model = json.loads((folder / "tokenizer" / "tokenizer.json").read_text())["model"]
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False))
    for path in folder.glob("**/*.safetensors"):
        path.chmod(0o644)  # safetensors writes for the owner only
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    (folder / "tokenizer" / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))


def export(work: Path, init: Path | None, to: Path, flow: bool = False) -> int:
    """Write the pipeline into the folder `to`, which it replaces as a whole; returns the step it is of."""
    pipe, made = assemble(work, init, flow)
    with replacing_folder(to) as folder:
        pipe.to(torch.float16).save_pretrained(folder, safe_serialization=True)
        make_portable(folder)
        (folder / "made.json").write_text(json.dumps(made, indent=1) + "\n")
    return int(made["step"])
