"""Mochi: one call with [unconditional, conditional]; flow that runs the other way, with x0 - eps emitted.

Read in diffusers 0.42.1, ``pipelines/mochi/pipeline_mochi.py``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .encoding import encode_prompt, tokens
from .record import Call, Family, Pipeline, Rows, register_family


def _encode(pipe: Pipeline, call: Call, texts: Sequence[str], as_prompt: bool) -> Rows:
    encoded = [
        # One by one: an empty text at the end may blank all of a call (`force_zeros_for_empty_prompt`).
        encode_prompt(pipe, [text], per="video", max_sequence_length=tokens(call, 256, as_prompt))
        for text in texts
    ]
    embeddings, mask = (torch.cat([one[part] for one in encoded]) for part in (0, 1))
    return {"encoder_hidden_states": embeddings, "encoder_attention_mask": mask}


register_family(
    Family(
        pipeline="MochiPipeline",
        rows=("encoder_hidden_states", "encoder_attention_mask", "timestep"),
        upcasts=True,
        encode=_encode,
        embeds={"prompt_embeds": "encoder_hidden_states", "prompt_attention_mask": "encoder_attention_mask"},
    )
)
