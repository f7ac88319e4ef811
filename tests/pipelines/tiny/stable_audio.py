"""StableAudioPipeline, with the scheduler of its class and with the stochastic one of the released models."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import torch

from . import Tiny
from .parts import quiet
from .text import louder, request, t5_encoder, t5_tokenizer


def _make(scheduler: str = "EDMDPMSolverMultistepScheduler") -> Any:
    import diffusers
    from diffusers import AutoencoderOobleck, StableAudioDiTModel, StableAudioPipeline, StableAudioProjectionModel

    torch.manual_seed(0)
    transformer = StableAudioDiTModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        num_key_value_attention_heads=2,
        cross_attention_dim=16,
        cross_attention_input_dim=16,
        time_proj_dim=8,
        global_states_input_dim=32,
    )
    louder(transformer, ("cross_attention_proj", "attn2.to_v", "attn2.to_out"), 2)
    with warnings.catch_warnings():  # it normalizes its weights by a function that torch has announced to end
        warnings.simplefilter("ignore", FutureWarning)
        vae = AutoencoderOobleck(
            encoder_hidden_size=4,
            downsampling_ratios=[2, 2],
            channel_multiples=[1, 1],
            decoder_channels=4,
            decoder_input_channels=4,
            sampling_rate=16,
        )
    pipe = StableAudioPipeline(
        vae=vae,
        text_encoder=t5_encoder(),
        projection_model=StableAudioProjectionModel(text_encoder_dim=16, conditioning_dim=16, min_value=0, max_value=8),
        tokenizer=t5_tokenizer(),
        transformer=transformer,
        scheduler=getattr(diffusers, scheduler)(
            sigma_min=0.3, sigma_max=500.0, sigma_data=1.0, sigma_schedule="exponential", prediction_type="v_prediction"
        ),
    )
    return quiet(pipe)


def _arguments(batch: int, negative: bool = False, **more: Any) -> dict[str, Any]:
    return request(batch, negative, {"audio_end_in_s": 4.0, "num_inference_steps": 3}, more)


EDM = Tiny(_make, _arguments)
COSINE = Tiny(functools.partial(_make, "CosineDPMSolverMultistepScheduler"), _arguments)
