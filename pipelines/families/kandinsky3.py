"""Kandinsky 3: one call with [unconditional, conditional].

Its own scale counts from 0: ``guidance_scale=s`` there is ``cfg(s + 1)`` here. It cuts negative prompts to the length
of the prompts; further positives are cut likewise.

Read in diffusers 0.42.1, ``pipelines/kandinsky3/pipeline_kandinsky3.py``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from .encoding import encode_prompt
from .record import Call, Family, Pipeline, Rows, register_family


def _encode(pipe: Pipeline, call: Call, texts: Sequence[str], as_prompt: bool) -> Rows:
    embeddings, _, mask, _ = encode_prompt(pipe, texts)
    return {"encoder_hidden_states": embeddings * mask.unsqueeze(2), "encoder_attention_mask": mask.bool()}


def _completed(arguments: Mapping[str, Any], rows: Rows) -> Rows:
    # Negatives are cut to the length of the prompts, which the network takes a mean over.
    length = arguments["encoder_hidden_states"].shape[1]
    return {name: value[:, :length] for name, value in rows.items()}


# (s + 1) g - s g is g to the bit where s is 1 in the tensors' type; the pipeline guides where s > 1 in Python's.
JUST_ABOVE_ONE = math.nextafter(1, 2)

register_family(
    Family(
        pipeline="Kandinsky3Pipeline",
        denoiser="unet",
        positional=("sample", "timestep"),
        sample="sample",
        rows=("encoder_hidden_states", "encoder_attention_mask"),
        guided={"guidance_scale": JUST_ABOVE_ONE},
        owned={"guidance_scale": "cfg(scale + 1)"},
        offset=1.0,
        encode=_encode,
        embeds={"prompt_embeds": "encoder_hidden_states", "attention_mask": "encoder_attention_mask"},
        zeros=lambda pipe: True,
        completed=_completed,
    )
)
