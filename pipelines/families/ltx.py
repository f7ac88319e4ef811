"""LTX-Video: one call with [unconditional, conditional], flow on packed latents.

Read in diffusers 0.42.1, ``pipelines/ltx/pipeline_ltx.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from .record import FAMILIES, Call, Family, Pipeline, Rows, tokens


def _encode(pipe: Pipeline, call: Call, texts: Sequence[str], as_prompt: bool) -> Rows:
    embeddings, mask, *_ = pipe.encode_prompt(
        list(texts),
        do_classifier_free_guidance=False,
        num_videos_per_prompt=1,
        max_sequence_length=tokens(call, 128, as_prompt),
        device=pipe._execution_device,
    )
    return {"encoder_hidden_states": embeddings, "encoder_attention_mask": mask}


FAMILIES["LTXPipeline"] = Family(
    pipeline="LTXPipeline",
    denoiser="transformer",
    positional=(),
    sample="hidden_states",
    rows=("encoder_hidden_states", "encoder_attention_mask", "timestep"),
    guided={"guidance_scale": 2.0, "guidance_rescale": 0.0},
    unguided={"guidance_scale": 1.0, "guidance_rescale": 0.0},
    owned={"guidance_scale": "cfg(scale)", "guidance_rescale": "rescale(phi)"},
    scratch=("_guidance_scale", "_guidance_rescale"),
    upcasts=True,
    branches=lambda pipe, call: bool(pipe.do_classifier_free_guidance),
    encode=_encode,
    embeds={"prompt_embeds": "encoder_hidden_states", "prompt_attention_mask": "encoder_attention_mask"},
    cannot=lambda pipe: "",
)


def _after_the_picture(pipe: Pipeline, arguments: Mapping[str, Any]) -> tuple[slice, ...]:
    # The first frame is the picture: it stays as it is, and what the network answers there goes nowhere.
    return (slice(arguments["hidden_states"].shape[1] // arguments["num_frames"], None),)


def _frames(pipe: Pipeline, arguments: Mapping[str, Any], samples: torch.Tensor) -> torch.Tensor:
    unpacked: torch.Tensor = pipe._unpack_latents(
        samples,
        arguments["num_frames"] - 1,
        arguments["height"],
        arguments["width"],
        pipe.transformer_spatial_patch_size,
        pipe.transformer_temporal_patch_size,
    )
    return unpacked


FAMILIES["LTXImageToVideoPipeline"] = replace(
    FAMILIES["LTXPipeline"],
    pipeline="LTXImageToVideoPipeline",
    part=_after_the_picture,
    handed=_frames,
)
