"""The bundled model: text to emoji, 64x64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

EMOJI = Path(__file__).parents[1] / "emoji"


def load_emoji(dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu") -> Any:
    """Load the bundled text-to-emoji model as a stock ``StableDiffusionPipeline``, without a download.

    Args:
        dtype: type of the weights; they are stored in float16.
        device: where to put the model.

    Returns:
        A pipeline of 64x64 pictures, for prompts such as ``"cat face, noto style, blue background"``; see its card.
    """
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(EMOJI, dtype=dtype, local_files_only=True, use_safetensors=True)
    return pipe.to(device)
