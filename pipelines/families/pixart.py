"""PixArt alpha and sigma: one call with [unconditional, conditional]; epsilon with learned variances.

The pipelines drop the variances after their combination of the halves.

Read in diffusers 0.42.1, ``pipelines/pixart_alpha/``.
"""

from __future__ import annotations

from collections.abc import Sequence

from .encoding import encode_prompt, tokens
from .record import Call, Family, Pipeline, Rows, register_family


def _encode(pipe: Pipeline, call: Call, texts: Sequence[str], as_prompt: bool) -> Rows:
    embeddings, mask, *_ = encode_prompt(
        pipe,
        texts,
        clean_caption=call.get("clean_caption", True),
        max_sequence_length=tokens(call, 300 if "Sigma" in type(pipe).__name__ else 120, as_prompt),
    )
    return {"encoder_hidden_states": embeddings, "encoder_attention_mask": mask}


for name in ("PixArtAlphaPipeline", "PixArtSigmaPipeline"):
    register_family(
        Family(
            pipeline=name,
            positional=("hidden_states",),
            rows=(
                "encoder_hidden_states",
                "encoder_attention_mask",
                "timestep",
                "added_cond_kwargs.resolution",
                "added_cond_kwargs.aspect_ratio",
            ),
            keywords=("mask_feature",),
            branches=lambda pipe, call: call["guidance_scale"] > 1,
            encode=_encode,
            embeds={"prompt_embeds": "encoder_hidden_states", "prompt_attention_mask": "encoder_attention_mask"},
        )
    )
