"""CogVideoX: one call with [unconditional, conditional], v.

Read in diffusers 0.42.1, ``pipelines/cogvideo/pipeline_cogvideox.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from .record import FAMILIES, Call, Family, Pipeline, Rows, tokens


def _encode(pipe: Pipeline, call: Call, texts: Sequence[str], as_prompt: bool) -> Rows:
    embeddings, _ = pipe.encode_prompt(
        list(texts),
        do_classifier_free_guidance=False,
        num_videos_per_prompt=1,
        max_sequence_length=tokens(call, 226, as_prompt),
        device=pipe._execution_device,
    )
    return {"encoder_hidden_states": embeddings}


FAMILIES["CogVideoXPipeline"] = Family(
    pipeline="CogVideoXPipeline",
    denoiser="transformer",
    positional=(),
    sample="hidden_states",
    rows=("encoder_hidden_states", "timestep"),
    guided={"guidance_scale": 2.0, "use_dynamic_cfg": False},
    unguided={"guidance_scale": 1.0, "use_dynamic_cfg": False},
    owned={"guidance_scale": "cfg(scale)", "use_dynamic_cfg": "during(cfg(scale), sigma=...)"},
    scratch=("_guidance_scale",),
    upcasts=True,
    branches=lambda pipe, call: call["guidance_scale"] > 1,
    encode=_encode,
    embeds={"prompt_embeds": "encoder_hidden_states"},
    example=lambda pipe, batch: {"max_sequence_length": pipe.transformer.config.max_text_seq_length},
    cannot=lambda pipe: "",
)

for _name in ("CogVideoXImageToVideoPipeline", "CogVideoXVideoToVideoPipeline"):
    FAMILIES[_name] = replace(FAMILIES["CogVideoXPipeline"], pipeline=_name)
