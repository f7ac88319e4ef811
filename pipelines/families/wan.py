"""Wan 2.1 and 2.2, text to video: two calls, the prompt's and the negative prompt's; flow.

Wan 2.2 has a second network for the less noisy part of a run, with a scale of its own. Under a stack both get the
stack's; a scale for each is ``during(cfg(3), sigma=...) | during(cfg(4), sigma=...)``.

Read in diffusers 0.42.1, ``pipelines/wan/pipeline_wan.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from .encoding import encode_prompt, tokens
from .record import SEQUENTIAL, Call, Family, Pipeline, Rows, register_family


def _transformer(pipe: Pipeline) -> Any:
    return pipe.transformer if pipe.transformer is not None else pipe.transformer_2


def _encode(pipe: Pipeline, call: Call, texts: Sequence[str], as_prompt: bool) -> Rows:
    embeddings, _ = encode_prompt(
        pipe, texts, per="video", max_sequence_length=tokens(call, 512, as_prompt, alone=True)
    )
    return {"encoder_hidden_states": embeddings.to(_transformer(pipe).dtype)}


WAN = register_family(
    Family(
        pipeline="WanPipeline",
        others=("transformer_2",),
        rows=("timestep", "encoder_hidden_states"),
        **SEQUENTIAL,
        owned={"guidance_scale": "cfg(scale)", "guidance_scale_2": "during(cfg(scale), sigma=...)"},
        scratch=("_guidance_scale", "_guidance_scale_2"),
        encode=_encode,
        embeds={"prompt_embeds": "encoder_hidden_states"},
    )
)


def _denoised(pipe: Pipeline, arguments: Mapping[str, Any]) -> tuple[slice, ...]:
    if pipe.config.expand_timesteps:  # the first frame is the picture, and stays as it is
        return (slice(None), slice(1, None))
    return (slice(_transformer(pipe).config.out_channels),)  # behind them, the picture and its mask


def _handed(pipe: Pipeline, arguments: Mapping[str, Any], samples: torch.Tensor) -> torch.Tensor:
    # With the first frame, which is put back after each step.
    return torch.cat([torch.zeros_like(samples[:, :, :1]), samples], 2) if pipe.config.expand_timesteps else samples


register_family(
    replace(
        WAN,
        pipeline="WanImageToVideoPipeline",
        rows=(*WAN.rows, "encoder_hidden_states_image"),
        part=_denoised,
        handed=_handed,
    )
)
register_family(
    replace(
        WAN,
        pipeline="WanVideoToVideoPipeline",
        others=(),
        owned={"guidance_scale": "cfg(scale)"},
        scratch=("_guidance_scale",),
    )
)
