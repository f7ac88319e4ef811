"""The bundled model: text to emoji, 64x64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from .differences import twin

EMOJI = Path(__file__).parents[1] / "emoji"
FLOW_TWIN = Path(__file__).parents[1] / "emoji-flow.safetensors"
"""The flow twin of the bundled model, as a difference from its denoiser."""
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 1.0}
"""The scheduler settings of the flow twin: the straight path from the picture to noise."""


def load_emoji(dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu", flow: bool = False) -> Any:
    """Load the bundled text-to-emoji model as a stock ``StableDiffusionPipeline``, without a download.

    Args:
        dtype: type of the weights; they are stored in float16.
        device: where to put the model.
        flow: load the flow twin instead, which predicts the velocity of the straight path from the picture to noise.

    Returns:
        A pipeline of 64x64 pictures, for prompts such as ``"cat face, noto style, blue background"``; see its card.
    """
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(EMOJI, dtype=dtype, local_files_only=True, use_safetensors=True)
    if flow:
        pipe.unet = twin(pipe.unet, FLOW_TWIN)
        pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, **FLOW)
    return pipe.to(device)
