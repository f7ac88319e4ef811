"""Pictures of the model: the same prompt and seed make the same picture, whatever else is in the batch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

SCALE, STEPS = 4.0, 25


def load(folder: Path) -> Any:
    """The pipeline in `folder`, in float32, with second-order DPM++ whatever the folder's scheduler."""
    from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True).to(torch.float32)
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generate(
    pipe: Any,
    prompts: Sequence[str],
    seed: int = 0,
    scale: float = SCALE,
    steps: int = STEPS,
    batch: int = 20,
) -> NDArray[np.float32]:
    """One picture a prompt, ``(N, 64, 64, 3)`` in [0, 1]; prompt `i` starts from the noise of seed ``seed + i``."""
    made = []
    for start in tqdm(range(0, len(prompts), batch), desc="sampling", unit="batch", disable=len(prompts) <= batch):
        part = list(prompts[start : start + batch])
        noise = [torch.Generator().manual_seed(seed + start + index) for index in range(len(part))]
        made.append(
            pipe(part, guidance_scale=scale, num_inference_steps=steps, generator=noise, output_type="np").images
        )
    return np.concatenate(made).astype(np.float32)
