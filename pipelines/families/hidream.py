"""HiDream: one call with [unconditional, conditional]; flow, with minus the velocity emitted.

Read in diffusers 0.42.1, ``pipelines/hidream_image/pipeline_hidream_image.py``.
"""

from __future__ import annotations

from collections.abc import Sequence

from .record import FAMILIES, Call, Family, Pipeline, Rows


def _tokens(call: Call) -> int:
    """How many tokens other prompts must have: as many as the embeddings that were given."""
    given = call.get("prompt_embeds_t5")
    return int(call.get("max_sequence_length", 128) if given is None else given.shape[1])


def _encode(pipe: Pipeline, call: Call, texts: Sequence[str], as_prompt: bool) -> Rows:
    t5, _, llama, _, pooled, _ = pipe.encode_prompt(
        prompt=list(texts),
        device=pipe._execution_device,
        num_images_per_prompt=1,
        do_classifier_free_guidance=False,
        max_sequence_length=_tokens(call),
    )
    return {"encoder_hidden_states_t5": t5, "encoder_hidden_states_llama3": llama, "pooled_embeds": pooled}


FAMILIES["HiDreamImagePipeline"] = Family(
    pipeline="HiDreamImagePipeline",
    denoiser="transformer",
    positional=(),
    sample="hidden_states",
    rows=("timesteps", "encoder_hidden_states_t5", "encoder_hidden_states_llama3", "pooled_embeds"),
    axes={"encoder_hidden_states_llama3": 1},
    timestep="timesteps",
    negates=True,
    guided={"guidance_scale": 2.0},
    unguided={"guidance_scale": 1.0},
    owned={"guidance_scale": "cfg(scale)"},
    scratch=("_guidance_scale",),
    branches=lambda pipe, call: bool(pipe.do_classifier_free_guidance),
    encode=_encode,
    embeds={
        "prompt_embeds_t5": "encoder_hidden_states_t5",
        "prompt_embeds_llama3": "encoder_hidden_states_llama3",
        "pooled_prompt_embeds": "pooled_embeds",
    },
    cannot=lambda pipe: "",
)
