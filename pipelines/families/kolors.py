"""Kolors: the UNet of Stable Diffusion XL with ChatGLM as its text encoder; one call with [unconditional, conditional].

Read in diffusers 0.42.1, ``pipelines/kolors/pipeline_kolors.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from .encoding import encode_prompt, tokens
from .record import Call, Pipeline, Rows, register_family
from .stable_diffusion_xl import PLAIN, POOLED


def _encode(pipe: Pipeline, call: Call, texts: Sequence[str], as_prompt: bool) -> Rows:
    # The pipelines take `max_sequence_length` and do not hand it on.
    length = tokens({**call, "max_sequence_length": 256}, 256, as_prompt)
    embeddings, _, pooled, _ = encode_prompt(pipe, texts, max_sequence_length=length)
    return {"encoder_hidden_states": embeddings, POOLED: pooled}


KOLORS = register_family(replace(PLAIN, pipeline="KolorsPipeline", keywords=(), encode=_encode, random={}))
register_family(replace(KOLORS, pipeline="KolorsImg2ImgPipeline"))
