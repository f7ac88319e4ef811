"""Kolors: the UNet of Stable Diffusion XL with ChatGLM as its text encoder; one call with [unconditional, conditional].

Read in diffusers 0.42.1, ``pipelines/kolors/pipeline_kolors.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from .record import FAMILIES, Call, Pipeline, Rows, tokens
from .stable_diffusion_xl import POOLED


def _encode(pipe: Pipeline, call: Call, texts: Sequence[str], as_prompt: bool) -> Rows:
    # The pipelines take `max_sequence_length` and do not hand it on.
    length = tokens({**call, "max_sequence_length": 256}, 256, as_prompt)
    embeddings, _, pooled, _ = pipe.encode_prompt(
        list(texts),
        device=pipe._execution_device,
        num_images_per_prompt=1,
        do_classifier_free_guidance=False,
        max_sequence_length=length,
    )
    return {"encoder_hidden_states": embeddings, POOLED: pooled}


FAMILIES["KolorsPipeline"] = replace(
    FAMILIES["StableDiffusionXLPipeline"],
    pipeline="KolorsPipeline",
    guided={"guidance_scale": 2.0},
    unguided={"guidance_scale": 1.0},
    owned={"guidance_scale": "cfg(scale)"},
    keywords=(),
    scratch=("_guidance_scale",),
    encode=_encode,
    random={},
)

FAMILIES["KolorsImg2ImgPipeline"] = replace(FAMILIES["KolorsPipeline"], pipeline="KolorsImg2ImgPipeline")
