"""Kandinsky 3: one call with [unconditional, conditional].

Its own scale counts from 0: ``guidance_scale=s`` there is ``cfg(s + 1)`` here. It cuts negative prompts to the length
of the prompts; further positives are cut likewise.

Read in diffusers 0.42.1, ``pipelines/kandinsky3/pipeline_kandinsky3.py``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from .record import FAMILIES, Call, Family, Pipeline, Rows


def _encode(pipe: Pipeline, call: Call, texts: Sequence[str], as_prompt: bool) -> Rows:
    embeddings, _, mask, _ = pipe.encode_prompt(
        list(texts), do_classifier_free_guidance=False, num_images_per_prompt=1, device=pipe._execution_device
    )
    return {"encoder_hidden_states": embeddings * mask.unsqueeze(2), "encoder_attention_mask": mask.bool()}


def _completed(arguments: Mapping[str, Any], rows: Rows) -> Rows:
    # Negatives are cut to the length of the prompts, which the network takes a mean over.
    length = arguments["encoder_hidden_states"].shape[1]
    return {name: value[:, :length] for name, value in rows.items()}


# (s + 1) g - s g is g to the bit where s is 1 in the tensors' type; the pipeline guides where s > 1 in Python's.
JUST_ABOVE_ONE = math.nextafter(1, 2)

FAMILIES["Kandinsky3Pipeline"] = Family(
    pipeline="Kandinsky3Pipeline",
    denoiser="unet",
    positional=("sample", "timestep"),
    sample="sample",
    rows=("encoder_hidden_states", "encoder_attention_mask"),
    guided={"guidance_scale": JUST_ABOVE_ONE},
    unguided={"guidance_scale": 1.0},
    owned={"guidance_scale": "cfg(scale + 1)"},
    scratch=("_guidance_scale",),
    branches=lambda pipe, call: bool(pipe.do_classifier_free_guidance),
    offset=1.0,
    encode=_encode,
    embeds={"prompt_embeds": "encoder_hidden_states", "attention_mask": "encoder_attention_mask"},
    zeros=lambda pipe: True,
    completed=_completed,
    cannot=lambda pipe: "",
)
