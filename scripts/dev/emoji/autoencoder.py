"""Train the autoencoder: 64x64 pictures to 16x16 latents of four channels and back."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ....evaluation.emoji import pictures
from ....evaluation.emoji.vocabulary import BACKGROUNDS
from ....guidance.files import replacing_folder
from . import harvested
from .training import Trainer, generators

SEED = 20261123
ARBITRARY = 0.15  # share of backgrounds that are any colour, so that the twelve are not all it can draw
KL = 1e-4


def new_autoencoder() -> Any:
    """An ``AutoencoderKL`` of 0.65M parameters with fresh weights."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(16, 32, 64),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=64,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def draw_batch(rgba: pictures.Pixels, step: int, batch: int) -> tuple[Tensor, torch.Generator]:
    """Pictures ``(B, 3, 64, 64)`` in [-1, 1] on random backgrounds, half of them mirrored; and the step's generator."""
    tensor_random, random_ = generators(SEED, step)
    named = list(BACKGROUNDS.values())
    chosen: list[NDArray[np.float32]] = []
    for index in torch.randint(len(rgba), (batch,), generator=tensor_random).tolist():
        arbitrary = (random_.randrange(256), random_.randrange(256), random_.randrange(256))
        colour = arbitrary if random_.random() < ARBITRARY else random_.choice(named)
        picture = pictures.on_background(rgba[index], colour)
        chosen.append(picture[:, ::-1] if random_.random() < 0.5 else picture)
    return harvested.to_tensor(np.stack(chosen)), tensor_random


def difference(decoded: Tensor, images: Tensor) -> Tensor:
    """L1 + MSE + half the L1 of the horizontal and vertical gradients, which keeps outlines sharp."""
    error = decoded - images
    gradients = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    return error.abs().mean() + error.square().mean() + 0.5 * gradients


def make_loss(vae: Any, rgba: pictures.Pixels, batch: int) -> Callable[[int], Tensor]:
    """The loss of a step: reconstruction, and a little Kullback-Leibler to keep the latents bounded."""

    def loss_at(step: int) -> Tensor:
        images, tensor_random = draw_batch(rgba, step, batch)
        with torch.autocast("cpu", torch.bfloat16):
            latent = vae.encode(images).latent_dist
            decoded = vae.decode(latent.sample(tensor_random)).sample
        divergence: Tensor = latent.kl().float().mean() / latent.mean[0].numel()
        return difference(decoded.float(), images) + KL * divergence

    return loss_at


@torch.no_grad()
def calibrate(vae: Any, rgba: pictures.Pixels) -> float:
    """Set the scaling factor so that latents have unit variance; returns the PSNR in decibels."""
    images, latents, errors = harvested.to_tensor(pictures.on_background(rgba, BACKGROUNDS["white"])), [], []
    for part in torch.split(images, 64):
        latent = vae.encode(part).latent_dist.mean
        latents.append(latent)
        decoded = vae.decode(latent).sample.clamp(-1, 1)
        errors.append((decoded - part).square().mean((1, 2, 3)))
    vae.register_to_config(scaling_factor=1 / float(torch.cat(latents).std()))
    # Pixels span 2, hence the 4.
    return -10 * math.log10(float(torch.cat(errors).mean()) / 4)


def autoencoder(work: Path, steps: int, decay_from: int, batch: int, learning_rate: float) -> float | None:
    """Train, or go on training, and write ``vae/`` at the end; returns the PSNR, or None if it was stopped before."""
    rgba, _ = harvested.load(work)
    vae = new_autoencoder().train()
    trainer = Trainer({"vae": vae}, work / "autoencoder.safetensors", learning_rate, ema=0.995)
    if not trainer.train(make_loss(vae, rgba, batch), steps, decay_from, warmup=min(100, steps // 10)):
        return None
    vae.load_state_dict(trainer.averaged("vae"))
    decibels = calibrate(vae.eval(), rgba[::12])  # a sample of every set tells as much as all of them
    with replacing_folder(work / "vae") as folder:
        vae.save_pretrained(folder)
    return decibels
