"""FLUX.2 Klein: two calls, the prompt's and the empty prompt's, flow on packed latents. It takes no negative prompt.

Read in diffusers 0.42.1, ``pipelines/flux2/pipeline_flux2_klein.py``.
"""

from __future__ import annotations

from collections.abc import Sequence

from .record import SEQUENTIAL, Call, Family, Pipeline, Rows, register_family


def _encode(pipe: Pipeline, call: Call, texts: Sequence[str], as_prompt: bool) -> Rows:
    options = {name: call[name] for name in ("max_sequence_length", "text_encoder_out_layers") if name in call}
    embeddings, ids = pipe.encode_prompt(list(texts), device=pipe._execution_device, num_images_per_prompt=1, **options)
    return {"encoder_hidden_states": embeddings, "txt_ids": ids}


def _cannot(pipe: Pipeline) -> str:
    if pipe.config.is_distilled:
        return "it was distilled from guided runs (is_distilled) and evaluates no empty prompt"
    return ""


register_family(
    Family(
        pipeline="Flux2KleinPipeline",
        rows=("timestep", "guidance", "encoder_hidden_states", "txt_ids", "img_ids"),
        **SEQUENTIAL,
        clock=lambda pipe, timestep: 1000 * timestep,
        encode=_encode,
        embeds={"prompt_embeds": "encoder_hidden_states"},
        cannot=_cannot,
    )
)
