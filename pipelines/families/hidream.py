"""HiDream: one call with [unconditional, conditional]; flow, with minus the velocity emitted.

Read in diffusers 0.42.1, ``pipelines/hidream_image/pipeline_hidream_image.py``.
"""

from __future__ import annotations

from collections.abc import Sequence

from .encoding import encode_prompt
from .record import Call, Family, Pipeline, Rows, register_family


def _tokens(call: Call) -> int:
    """How many tokens other prompts must have: as many as the embeddings that were given."""
    given = call.get("prompt_embeds_t5")
    return int(call.get("max_sequence_length", 128) if given is None else given.shape[1])


def _encode(pipe: Pipeline, call: Call, texts: Sequence[str], as_prompt: bool) -> Rows:
    t5, _, llama, _, pooled, _ = encode_prompt(pipe, texts, max_sequence_length=_tokens(call))
    return {"encoder_hidden_states_t5": t5, "encoder_hidden_states_llama3": llama, "pooled_embeds": pooled}


register_family(
    Family(
        pipeline="HiDreamImagePipeline",
        rows=("timesteps", "encoder_hidden_states_t5", "encoder_hidden_states_llama3", "pooled_embeds"),
        axes={"encoder_hidden_states_llama3": 1},
        timestep="timesteps",
        negates=True,
        encode=_encode,
        embeds={
            "prompt_embeds_t5": "encoder_hidden_states_t5",
            "prompt_embeds_llama3": "encoder_hidden_states_llama3",
            "pooled_prompt_embeds": "pooled_embeds",
        },
    )
)
