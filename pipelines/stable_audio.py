"""Stable Audio: one call with [unconditional, conditional]. Sound instead of pictures.

Its text is joined with the embedding of the duration, and no text at all is zeros: further prompts and, beside a
negative prompt, the empty one are not encoded here.

Read in diffusers 0.42.1, ``pipelines/stable_audio/pipeline_stable_audio.py``.
"""

from __future__ import annotations

from .family import FAMILIES, Family

FAMILIES["StableAudioPipeline"] = Family(
    pipeline="StableAudioPipeline",
    denoiser="transformer",
    positional=("hidden_states", "timestep"),
    sample="hidden_states",
    rows=("encoder_hidden_states", "global_hidden_states"),
    guided={"guidance_scale": 2.0},
    unguided={"guidance_scale": 1.0},
    owned={"guidance_scale": "cfg(scale)"},
    branches=lambda pipe, call: call["guidance_scale"] > 1,
    cannot=lambda pipe: "",
)
