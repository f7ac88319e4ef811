"""Stable Audio: one call with [unconditional, conditional]. Sound instead of pictures.

Its text is joined with the embedding of the duration; no negative prompt at all is zeros in the place of both.

Read in diffusers 0.42.1, ``pipelines/stable_audio/pipeline_stable_audio.py``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .record import Call, Family, Pipeline, Rows, register_family


def _encode(pipe: Pipeline, call: Call, texts: Sequence[str], as_prompt: bool) -> Rows:
    device = pipe._execution_device
    embeddings = pipe.encode_prompt(list(texts), device, False)
    longest = pipe.transformer.config.sample_size * pipe.vae.hop_length / pipe.vae.config.sampling_rate
    start, end = call.get("audio_start_in_s", 0.0), call.get("audio_end_in_s")
    durations = pipe.encode_duration(start, longest if end is None else end, device, False, len(texts))
    return {"encoder_hidden_states": torch.cat([embeddings, *durations], 1)}


register_family(
    Family(
        pipeline="StableAudioPipeline",
        positional=("hidden_states", "timestep"),
        rows=("encoder_hidden_states", "global_hidden_states"),
        branches=lambda pipe, call: call["guidance_scale"] > 1,
        encode=_encode,
        zeros=lambda pipe: True,
    )
)
