"""Mochi: one call with [unconditional, conditional]; flow that runs the other way, with x0 - eps emitted.

Read in diffusers 0.42.1, ``pipelines/mochi/pipeline_mochi.py``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .record import FAMILIES, Call, Family, Pipeline, Rows, tokens


def _encode(pipe: Pipeline, call: Call, texts: Sequence[str], as_prompt: bool) -> Rows:
    encoded = [
        pipe.encode_prompt(
            some,
            do_classifier_free_guidance=False,
            num_videos_per_prompt=1,
            max_sequence_length=tokens(call, 256, as_prompt),
            device=pipe._execution_device,
        )
        # One by one: an empty text at the end may blank all of a call (`force_zeros_for_empty_prompt`).
        for some in ([text] for text in texts)
    ]
    embeddings, mask = (torch.cat([one[part] for one in encoded]) for part in (0, 1))
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
    embeds={"prompt_embeds": "encoder_hidden_states", "prompt_attention_mask": "encoder_attention_mask"},
    cannot=lambda pipe: "",
)
