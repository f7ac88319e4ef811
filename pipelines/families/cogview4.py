"""CogView4: two calls, the prompt's and the negative prompt's; flow.

Read in diffusers 0.42.1, ``pipelines/cogview4/pipeline_cogview4.py``.
"""

from __future__ import annotations

from collections.abc import Sequence

from .record import FAMILIES, Call, Family, Pipeline, Rows


def _encode(pipe: Pipeline, call: Call, texts: Sequence[str], as_prompt: bool) -> Rows:
    embeddings, _ = pipe.encode_prompt(
        list(texts),
        do_classifier_free_guidance=False,
        num_images_per_prompt=1,
        max_sequence_length=call.get("max_sequence_length", 1024),
        device=pipe._execution_device,
    )
    return {"encoder_hidden_states": embeddings}


FAMILIES["CogView4Pipeline"] = Family(
    pipeline="CogView4Pipeline",
    denoiser="transformer",
    positional=(),
    sample="hidden_states",
    rows=("encoder_hidden_states", "timestep", "original_size", "target_size", "crop_coords"),
    halves=("positive", "negative"),
    sequential=True,
    guided={"guidance_scale": 2.0},
    unguided={"guidance_scale": 1.0},
    owned={"guidance_scale": "cfg(scale)"},
    scratch=("_guidance_scale",),
    branches=lambda pipe, call: bool(pipe.do_classifier_free_guidance),
    encode=_encode,
    embeds={"prompt_embeds": "encoder_hidden_states"},
    cannot=lambda pipe: "",
)
