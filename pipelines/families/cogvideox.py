"""CogVideoX: one call with [unconditional, conditional], v.

Read in diffusers 0.42.1, ``pipelines/cogvideo/pipeline_cogvideox.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from .encoding import encode_prompt, tokens
from .record import Call, Family, Pipeline, Rows, register_family


def _encode(pipe: Pipeline, call: Call, texts: Sequence[str], as_prompt: bool) -> Rows:
    embeddings, _ = encode_prompt(pipe, texts, per="video", max_sequence_length=tokens(call, 226, as_prompt))
    return {"encoder_hidden_states": embeddings}


COGVIDEOX = register_family(
    Family(
        pipeline="CogVideoXPipeline",
        rows=("encoder_hidden_states", "timestep"),
        guided={"guidance_scale": 2.0, "use_dynamic_cfg": False},
        unguided={"guidance_scale": 1.0, "use_dynamic_cfg": False},
        owned={"guidance_scale": "cfg(scale)", "use_dynamic_cfg": "during(cfg(scale), sigma=...)"},
        upcasts=True,
        branches=lambda pipe, call: call["guidance_scale"] > 1,
        encode=_encode,
        embeds={"prompt_embeds": "encoder_hidden_states"},
        example=lambda pipe, batch: {"max_sequence_length": pipe.transformer.config.max_text_seq_length},
    )
)

for name in ("CogVideoXImageToVideoPipeline", "CogVideoXVideoToVideoPipeline"):
    register_family(replace(COGVIDEOX, pipeline=name))
