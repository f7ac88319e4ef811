"""QwenImage: two calls, the prompt's and the negative prompt's, flow on packed latents.

The pipeline gives its guided prediction the norm of the prompt's, token by token, and cannot be told not to; under a
stack that is a rule: ``cfg(scale) | renorm()`` is the pipeline's own guidance.

Read in diffusers 0.42.1, ``pipelines/qwenimage/pipeline_qwenimage.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from .record import TRUE_CFG, Call, Family, Pipeline, Rows, register_family


def _encode(pipe: Pipeline, call: Call, texts: Sequence[str], as_prompt: bool) -> Rows:
    embeddings, mask = pipe.encode_prompt(
        list(texts),
        device=pipe._execution_device,
        num_images_per_prompt=1,
        max_sequence_length=call.get("max_sequence_length", 512),
    )
    return {"encoder_hidden_states": embeddings, "encoder_hidden_states_mask": mask}


QWEN = register_family(
    Family(
        pipeline="QwenImagePipeline",
        rows=("timestep", "guidance", "encoder_hidden_states", "encoder_hidden_states_mask"),
        **TRUE_CFG | {"owned": {"true_cfg_scale": "cfg(scale) | renorm()"}},
        clock=lambda pipe, timestep: 1000 * timestep,
        own="renorm()",
        scratch=("_guidance_scale", "_attention_kwargs"),
        encode=_encode,
        embeds={"prompt_embeds": "encoder_hidden_states", "prompt_embeds_mask": "encoder_hidden_states_mask"},
    )
)

for name in ("QwenImageImg2ImgPipeline", "QwenImageInpaintPipeline"):
    register_family(replace(QWEN, pipeline=name))
