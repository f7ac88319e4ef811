"""The training pictures as latents, on every background, scaled to unit variance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from ....evaluation.emoji import pictures
from ....evaluation.emoji.vocabulary import BACKGROUNDS, concepts
from ....guidance.files import replacing
from . import harvested


def encode(vae: Any, images: Tensor) -> Tensor:
    """Scaled latent means ``(N, 4, 16, 16)`` of pictures ``(N, 3, 64, 64)`` in [-1, 1]."""
    return vae.encode(images).latent_dist.mean * vae.config.scaling_factor  # type: ignore[no-any-return]


@torch.no_grad()
def latents(work: Path) -> int:
    """Write ``latents.safetensors``: ``(12, N, 4, 16, 16)`` in half precision, backgrounds first; returns N."""
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(work / "vae", local_files_only=True).eval()
    rgba, _ = harvested.load(work, concepts())
    every = []
    for colour in tqdm(BACKGROUNDS.values(), desc="latents", unit="background"):
        images = harvested.to_tensor(pictures.on_background(rgba, colour))
        every.append(torch.cat([encode(vae, part) for part in torch.split(images, 64)]).half())
    with replacing(work / "latents.safetensors") as path:
        save_file({"latents": torch.stack(every).contiguous()}, path)
    return len(rgba)


def load(work: Path) -> Tensor:
    """The latents ``(12, N, 4, 16, 16)``."""
    return load_file(work / "latents.safetensors")["latents"]  # type: ignore[no-any-return]
