"""Sana: one call with [unconditional, conditional], flow; prompts are encoded behind an instruction, negatives not.

Read in diffusers 0.42.1, ``pipelines/sana/pipeline_sana.py``.
"""

from __future__ import annotations

from collections.abc import Sequence

from .encoding import tokens
from .lookup import signature_of
from .record import Call, Family, Pipeline, Rows, register_family


def _encode(pipe: Pipeline, call: Call, texts: Sequence[str], as_prompt: bool) -> Rows:
    # The instruction stands before prompts, and not before negative ones.
    default = signature_of(pipe).parameters["complex_human_instruction"].default
    encoded = pipe.encode_prompt(
        list(texts),
        do_classifier_free_guidance=not as_prompt,
        negative_prompt="" if as_prompt else list(texts),
        num_images_per_prompt=1,
        device=pipe._execution_device,
        clean_caption=call.get("clean_caption", False),
        max_sequence_length=tokens(call, 300, as_prompt),
        complex_human_instruction=call.get("complex_human_instruction", default),
    )
    embeddings, mask = encoded[:2] if as_prompt else encoded[2:]
    return {"encoder_hidden_states": embeddings.to(pipe.transformer.dtype), "encoder_attention_mask": mask}


register_family(
    Family(
        pipeline="SanaPipeline",
        positional=("hidden_states",),
        rows=("encoder_hidden_states", "encoder_attention_mask", "timestep"),
        clock=lambda pipe, timestep: timestep / pipe.transformer.config.timestep_scale,
        upcasts=True,
        encode=_encode,
        embeds={"prompt_embeds": "encoder_hidden_states", "prompt_attention_mask": "encoder_attention_mask"},
    )
)
