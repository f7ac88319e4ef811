"""Mochi: one call with [unconditional, conditional]; flow that runs the other way, with x0 - eps emitted.

Read in diffusers 0.42.1, ``pipelines/mochi/pipeline_mochi.py``.
"""

from __future__ import annotations

from collections.abc import Sequence

from .family import FAMILIES, Call, Family, Pipeline, Rows


def _encode(pipe: Pipeline, call: Call, texts: Sequence[str], as_prompt: bool) -> Rows:
    embeddings, mask, *_ = pipe.encode_prompt(
        list(texts),
        do_classifier_free_guidance=False,
        num_videos_per_prompt=1,
        max_sequence_length=call.get("max_sequence_length", 256),
        device=pipe._execution_device,
    )
    return {"encoder_hidden_states": embeddings, "encoder_attention_mask": mask}


FAMILIES["MochiPipeline"] = Family(
    pipeline="MochiPipeline",
    denoiser="transformer",
    positional=(),
    sample="hidden_states",
    rows=("encoder_hidden_states", "encoder_attention_mask", "timestep"),
    guided={"guidance_scale": 2.0},
    unguided={"guidance_scale": 1.0},
    owned={"guidance_scale": "cfg(scale)"},
    scratch=("_guidance_scale",),
    upcasts=True,
    branches=lambda pipe, call: bool(pipe.do_classifier_free_guidance),
    encode=_encode,
    cannot=lambda pipe: "",
)
