"""Lumina Image 2.0: two calls, the prompt's and the negative prompt's; flow, with minus the velocity emitted.

The pipeline may give its guided prediction the norm of the prompt's along the last axis, and does so by default; under
a stack that is a rule: ``cfg(scale) | renorm()``. What it calls truncation is ``during(..., progress=...)``.

Read in diffusers 0.42.1, ``pipelines/lumina2/pipeline_lumina2.py``.
"""

from __future__ import annotations

from collections.abc import Sequence

from .record import SEQUENTIAL, Call, Family, Pipeline, Rows, register_family


def _encode(pipe: Pipeline, call: Call, texts: Sequence[str], as_prompt: bool) -> Rows:
    # The system prompt stands before prompts, and not before negative ones.
    encoded = pipe.encode_prompt(
        list(texts),
        do_classifier_free_guidance=not as_prompt,
        negative_prompt=None if as_prompt else list(texts),
        num_images_per_prompt=1,
        device=pipe._execution_device,
        max_sequence_length=call.get("max_sequence_length", 256),
        system_prompt=call.get("system_prompt"),
    )
    embeddings, mask = encoded[:2] if as_prompt else encoded[2:]
    return {"encoder_hidden_states": embeddings, "encoder_attention_mask": mask}


register_family(
    Family(
        pipeline="Lumina2Pipeline",
        rows=("timestep", "encoder_hidden_states", "encoder_attention_mask"),
        **SEQUENTIAL,
        negates=True,
        clock=lambda pipe, timestep: 1000 * (1 - timestep),
        guided={"guidance_scale": 2.0, "cfg_trunc_ratio": 1.0, "cfg_normalization": False},
        owned={
            "guidance_scale": "cfg(scale)",
            "cfg_trunc_ratio": "during(rule, progress=(0, ratio))",
            "cfg_normalization": "renorm()",
        },
        own="renorm()",
        encode=_encode,
        alike=True,
        embeds={"prompt_embeds": "encoder_hidden_states", "prompt_attention_mask": "encoder_attention_mask"},
    )
)
