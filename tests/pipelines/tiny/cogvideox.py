"""CogVideoX, with the positions of the 2B model and with the rotary ones of the 5B model; from pictures."""

from __future__ import annotations

import functools
from typing import Any

import torch

from . import Tiny
from .parts import pictures, quiet
from .text import louder, request, t5_encoder, t5_tokenizer

_LENGTH = 16


def _make(
    scheduler: str = "CogVideoXDDIMScheduler", rotary: bool = False, cls: str = "CogVideoXPipeline", **options: Any
) -> Any:
    import diffusers
    from diffusers import AutoencoderKLCogVideoX, CogVideoXTransformer3DModel

    torch.manual_seed(0)
    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        **{"in_channels": 4, **options},
        out_channels=4,
        time_embed_dim=8,
        text_embed_dim=16,
        num_layers=1,
        sample_width=8,
        sample_height=8,
        sample_frames=5,
        max_text_seq_length=_LENGTH,
        use_rotary_positional_embeddings=rotary,
    )
    louder(transformer, ("text_proj", "attn1.to_v", "attn1.to_out"), 4)
    vae = AutoencoderKLCogVideoX(
        block_out_channels=(4, 4, 4, 4), latent_channels=4, layers_per_block=1, norm_num_groups=2, scaling_factor=0.7
    )
    pipe = getattr(diffusers, cls)(
        tokenizer=t5_tokenizer(),
        text_encoder=t5_encoder(),
        vae=vae,
        transformer=transformer,
        scheduler=getattr(diffusers, scheduler)(
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            beta_end=0.012,
            prediction_type="v_prediction",
            rescale_betas_zero_snr=True,
            snr_shift_scale=1.0,
            set_alpha_to_one=True,
            timestep_spacing="trailing",
        ),
    )
    return quiet(pipe)


def _arguments(batch: int, negative: bool = False, **more: Any) -> dict[str, Any]:
    return request(batch, negative, {"num_frames": 5, "max_sequence_length": _LENGTH}, more)


DDIM = Tiny(_make, _arguments)
DPM = Tiny(functools.partial(_make, "CogVideoXDPMScheduler", rotary=True), _arguments)


def _from_picture(batch: int, negative: bool = False, **more: Any) -> dict[str, Any]:
    return _arguments(batch, negative, **{"image": pictures(batch, 64), "height": 64, "width": 64, **more})


def _from_video(batch: int, negative: bool = False, **more: Any) -> dict[str, Any]:
    video = pictures(5 * batch, 64).reshape(batch, 5, 3, 64, 64)
    given = {"video": [list(frames) for frames in video], "strength": 0.7, "num_inference_steps": 3}
    found = _arguments(batch, negative, **{**given, "height": 64, "width": 64, **more})
    del found["num_frames"]
    return found


IMAGE_TO_VIDEO = Tiny(functools.partial(_make, cls="CogVideoXImageToVideoPipeline", in_channels=8), _from_picture)
VIDEO_TO_VIDEO = Tiny(functools.partial(_make, cls="CogVideoXVideoToVideoPipeline"), _from_video)
