"""CogView4: two calls, the prompt's and the negative prompt's; flow.

Read in diffusers 0.42.1, ``pipelines/cogview4/pipeline_cogview4.py``.
"""

from __future__ import annotations

from collections.abc import Sequence

from .encoding import encode_prompt
from .record import SEQUENTIAL, Call, Family, Pipeline, Rows, register_family


def _encode(pipe: Pipeline, call: Call, texts: Sequence[str], as_prompt: bool) -> Rows:
    embeddings, _ = encode_prompt(pipe, texts, max_sequence_length=call.get("max_sequence_length", 1024))
    return {"encoder_hidden_states": embeddings}


register_family(
    Family(
        pipeline="CogView4Pipeline",
        rows=("encoder_hidden_states", "timestep", "original_size", "target_size", "crop_coords"),
        **SEQUENTIAL,
        encode=_encode,
        embeds={"prompt_embeds": "encoder_hidden_states"},
    )
)
