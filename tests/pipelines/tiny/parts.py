"""Parts that several pipelines share."""

from __future__ import annotations

from typing import Any

import torch


def quiet(pipe: Any) -> Any:
    """The pipeline without its progress bar, for inference."""
    pipe.set_progress_bar_config(disable=True)
    for component in pipe.components.values():
        if isinstance(component, torch.nn.Module):
            component.eval()
    return pipe


def pictures(batch: int, size: int = 16) -> torch.Tensor:
    """A different picture for each sample, in [0, 1]; shape ``(B, 3, size, size)``."""
    return torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(3))


def masks(batch: int, size: int = 16) -> torch.Tensor:
    """What to paint in each sample's picture; shape ``(B, 1, size, size)``."""
    mask = torch.zeros(batch, 1, size, size)
    for sample in range(batch):
        mask[sample, :, : size * (3 + sample) // 8, : size // 2] = 1
    return mask


def randomized(module: Any, scale: float, *names: str) -> None:
    """Random weights for the parameters whose names contain one of `names`, which begin training at zero."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if any(one in name for one in names):
                parameter.normal_(std=scale)


def vae(channels: int = 4, blocks: int = 2, **options: Any) -> Any:
    """An autoencoder that divides height and width by ``2 ** (blocks - 1)``."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        sample_size=16,
        block_out_channels=(4,) * blocks,
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        norm_num_groups=2,
        latent_channels=channels,
        **options,
    )


def unet(width: int, **options: Any) -> Any:
    """A UNet with 8x8 samples whose text has `width` channels."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=2,
        cross_attention_dim=width,
        **options,
    )


def controlnet(of: Any) -> Any:
    """A ControlNet for a UNet, whose residuals are not zero, which they are before training."""
    from diffusers import ControlNetModel

    net = ControlNetModel.from_unet(of, conditioning_embedding_out_channels=(4, 4))
    randomized(net, 0.3, "controlnet_down_blocks", "controlnet_mid_block", "controlnet_cond_embedding.conv_out")
    return net


def flow(**options: Any) -> Any:
    """The scheduler of flow models."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(**options)
