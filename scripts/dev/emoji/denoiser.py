"""Train the denoiser and the text encoder together: v-prediction of latents from captions, or a flow's velocity."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from ....evaluation.emoji.vocabulary import BACKGROUNDS, concepts
from . import harvested, latents
from .harvested import Drawing, training_caption
from .tokenizer import TOKENS
from .training import Trainer, generators

BATCH, LEARNING_RATE, SEED = 16, 6e-4, 20261124
DETAILS = (0.05, 1.5)
"""Noise levels sigma / alpha at which the details of a picture are decided."""
CHECKPOINT, FLOW_CHECKPOINT = "denoiser.safetensors", "flow.safetensors"


def new_text_encoder(vocabulary: int, bos: int, eos: int) -> Any:
    """A CLIP text model of 192 channels and 3 layers with fresh weights."""
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=3,
        num_attention_heads=6,
        max_position_embeddings=TOKENS,
        hidden_act="gelu",
        projection_dim=192,
        bos_token_id=bos,
        eos_token_id=eos,
        pad_token_id=eos,
    )
    return CLIPTextModel(config)


def new_unet() -> Any:
    """A UNet of 9.0M parameters with fresh weights.

    Attention at 8x8 only (at 16x16 it costs eight times as much a step), and the pooled text through the time
    embedding: without it colours are learnt in minutes and shapes hardly at all.
    """
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=(96, 192),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        attention_head_dim=6,
        norm_num_groups=16,
        cross_attention_dim=192,
        addition_embed_type="text",
        addition_embed_type_num_heads=6,
    )


def new_scheduler() -> Any:
    """DDIM with linear betas: the last level is nearly pure noise, and alpha stays above zero.

    With Stable Diffusion's betas the silhouettes followed the starting noise instead of the prompt.
    """
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule="linear",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def load_or_new(work: Path, init: Path | None) -> tuple[Any, Any, Any]:
    """Tokenizer, text encoder and UNet to start from: those of the pipeline folder `init`, or fresh ones."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained((init or work) / "tokenizer")
    if init is None:
        text_encoder = new_text_encoder(len(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id)
        return tokenizer, text_encoder, new_unet()
    text_encoder = CLIPTextModel.from_pretrained(init / "text_encoder").float()
    return tokenizer, text_encoder, UNet2DConditionModel.from_pretrained(init / "unet").float()


def tokens(tokenizer: Any, captions: list[str]) -> Tensor:
    """Token ids ``(B, 24)``, padded and cut as the pipeline does it."""
    options = {"padding": "max_length", "max_length": TOKENS, "truncation": True, "return_tensors": "pt"}
    return tokenizer(captions, **options).input_ids  # type: ignore[no-any-return]


def drawn_timesteps(alphas_cumprod: Tensor, batch: int, focus: float, generator: torch.Generator) -> Tensor:
    """Timesteps ``(batch,)``: a share `focus` of them among the levels of `DETAILS`, the others among all levels.

    One timestep comes from each of equal parts of its range, so that the loss varies less from batch to batch.

    Args:
        alphas_cumprod: alpha squared of every timestep.
        batch: how many timesteps.
        focus: from 0 (all levels alike) to 1.
        generator: where randomness comes from.
    """
    ratio = ((1 - alphas_cumprod) / alphas_cumprod).sqrt()
    first, last = (int(torch.searchsorted(ratio, bound)) for bound in DETAILS)
    focused = round(focus * batch)
    spread = torch.rand(batch, generator=generator)
    detailed = first + (torch.arange(focused) + spread[:focused]) / max(1, focused) * (last - first)
    others = (torch.arange(batch - focused) + spread[focused:]) / max(1, batch - focused) * len(alphas_cumprod)
    return torch.cat([detailed, others]).long()


def make_loss(
    unet: Any,
    text_encoder: Any,
    tokenizer: Any,
    data: Tensor,
    drawings: list[Drawing],
    alphas_cumprod: Tensor,
    batch: int,
    focus: float = 0.0,
    flow: bool = False,
) -> Callable[[int], Tensor]:
    """The loss of a step: mean squared error of v over a random batch of pictures, backgrounds, captions and levels.

    Of a `flow` it is the velocity noise - clean, on the straight path, at times of all levels alike.
    """
    backgrounds = list(BACKGROUNDS)

    def loss_at(step: int) -> Tensor:
        tensor_random, caption_random = generators(SEED, step)
        colour = torch.randint(len(backgrounds), (batch,), generator=tensor_random)
        picture = torch.randint(data.shape[1], (batch,), generator=tensor_random)
        clean = data[colour, picture].float()
        noise = torch.randn(clean.shape, generator=tensor_random)
        if flow:
            sigma = ((torch.arange(batch) + torch.rand(batch, generator=tensor_random)) / batch).reshape(-1, 1, 1, 1)
            alpha, timestep = 1 - sigma, sigma.flatten() * len(alphas_cumprod)
        else:
            timestep = drawn_timesteps(alphas_cumprod, batch, focus, tensor_random)
            alpha = alphas_cumprod[timestep].sqrt().reshape(-1, 1, 1, 1)
            sigma = (1 - alphas_cumprod[timestep]).sqrt().reshape(-1, 1, 1, 1)
        captions = [
            training_caption(drawings[i], backgrounds[c], caption_random)
            for i, c in zip(picture.tolist(), colour.tolist())
        ]
        with torch.autocast("cpu", torch.bfloat16):
            text = text_encoder(tokens(tokenizer, captions))[0]
            v = unet(alpha * clean + sigma * noise, timestep, text).sample
        right = noise - clean if flow else alpha * noise - sigma * clean
        return torch.nn.functional.mse_loss(v.float(), right)

    return loss_at


def denoiser(
    work: Path,
    steps: int,
    decay_from: int,
    init: Path | None,
    warmup: int = 200,
    batch: int = BATCH,
    learning_rate: float = LEARNING_RATE,
    save_every: float = 300.0,
    focus: float = 0.0,
    flow: bool = False,
) -> bool:
    """Train, or go on with, ``denoiser.safetensors`` or ``flow.safetensors``; returns whether it reached `steps`."""
    tokenizer, text_encoder, unet = load_or_new(work, init)
    text_encoder.train()
    unet.train()
    _, drawings = harvested.load(work, concepts())
    told = {"batch": batch, "rate": learning_rate, "focus": focus}
    trainer = Trainer({"unet": unet, "text_encoder": text_encoder}, _checkpoint(work, flow), learning_rate, told=told)
    scheduler = new_scheduler()
    alphas = scheduler.alphas_cumprod
    loss_at = make_loss(unet, text_encoder, tokenizer, latents.load(work), drawings, alphas, batch, focus, flow)
    return trainer.train(loss_at, steps, decay_from, warmup, save_every)


def _checkpoint(work: Path, flow: bool) -> Path:
    return work / (FLOW_CHECKPOINT if flow else CHECKPOINT)


def averaged(work: Path, init: Path | None, flow: bool = False) -> tuple[Any, Any, Any, dict[str, Any]]:
    """Tokenizer, text encoder and UNet with the averaged weights of the checkpoint, and how they were made."""
    path = _checkpoint(work, flow)
    if not path.exists():
        raise click.ClickException(f"no {path}: run the step `denoiser` first")
    tokenizer, text_encoder, unet = load_or_new(work, init)
    trainer = Trainer({"unet": unet, "text_encoder": text_encoder}, path, LEARNING_RATE)
    for name, module in (("unet", unet), ("text_encoder", text_encoder)):
        module.load_state_dict(module.state_dict() | trainer.averaged(name))
    made = {"step": trainer.step, "seconds": round(trainer.seconds), **trainer.told, "init": init is not None}
    return tokenizer, text_encoder.eval(), unet.eval(), made
