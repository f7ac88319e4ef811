"""AuraFlow: one call with [unconditional, conditional], flow; its time is in [0, 1].

Read in diffusers 0.42.1, ``pipelines/aura_flow/pipeline_aura_flow.py``.
"""

from __future__ import annotations

from collections.abc import Sequence

from .encoding import encode_prompt, lora_scale, tokens
from .record import Call, Family, Pipeline, Rows, register_family


def _encode(pipe: Pipeline, call: Call, texts: Sequence[str], as_prompt: bool) -> Rows:
    embeddings, *_ = encode_prompt(
        pipe, texts, max_sequence_length=tokens(call, 256, as_prompt), lora_scale=lora_scale(call, "attention_kwargs")
    )
    return {"encoder_hidden_states": embeddings}


register_family(
    Family(
        pipeline="AuraFlowPipeline",
        positional=("hidden_states",),
        rows=("encoder_hidden_states", "timestep"),
        clock=lambda pipe, timestep: 1000 * timestep,
        branches=lambda pipe, call: call["guidance_scale"] > 1,
        encode=_encode,
        embeds={"prompt_embeds": "encoder_hidden_states", "prompt_attention_mask": ""},
    )
)
