"""AuraFlow: one call with [unconditional, conditional], flow; its time is in [0, 1].

Read in diffusers 0.42.1, ``pipelines/aura_flow/pipeline_aura_flow.py``.
"""

from __future__ import annotations

from collections.abc import Sequence

from .record import FAMILIES, Call, Family, Pipeline, Rows, tokens


def _encode(pipe: Pipeline, call: Call, texts: Sequence[str], as_prompt: bool) -> Rows:
    embeddings, *_ = pipe.encode_prompt(
        prompt=list(texts),
        do_classifier_free_guidance=False,
        num_images_per_prompt=1,
        device=pipe._execution_device,
        max_sequence_length=tokens(call, 256, as_prompt),
        lora_scale=(call.get("attention_kwargs") or {}).get("scale"),
    )
    return {"encoder_hidden_states": embeddings}


FAMILIES["AuraFlowPipeline"] = Family(
    pipeline="AuraFlowPipeline",
    denoiser="transformer",
    positional=("hidden_states",),
    sample="hidden_states",
    rows=("encoder_hidden_states", "timestep"),
    clock=lambda pipe, timestep: 1000 * timestep,
    guided={"guidance_scale": 2.0},
    unguided={"guidance_scale": 1.0},
    owned={"guidance_scale": "cfg(scale)"},
    scratch=("_guidance_scale",),
    branches=lambda pipe, call: call["guidance_scale"] > 1,
    encode=_encode,
    embeds={"prompt_embeds": "encoder_hidden_states", "prompt_attention_mask": ""},
    cannot=lambda pipe: "",
)
