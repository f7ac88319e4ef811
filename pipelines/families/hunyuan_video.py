"""HunyuanVideo: two calls, the prompt's and the negative prompt's; flow.

Its distilled guidance, ``guidance_scale``, is an input of the network and stays the user's.

Read in diffusers 0.42.1, ``pipelines/hunyuan_video/pipeline_hunyuan_video.py``.
"""

from __future__ import annotations

from collections.abc import Sequence

from .record import TRUE_CFG, Call, Family, Pipeline, Rows, register_family


def _encode(pipe: Pipeline, call: Call, texts: Sequence[str], as_prompt: bool) -> Rows:
    options = {name: call[name] for name in ("prompt_template", "max_sequence_length") if call.get(name) is not None}
    embeddings, pooled, mask = pipe.encode_prompt(
        list(texts), num_videos_per_prompt=1, device=pipe._execution_device, **options
    )
    dtype = pipe.transformer.dtype
    return {
        "encoder_hidden_states": embeddings.to(dtype),
        "encoder_attention_mask": mask.to(dtype),
        "pooled_projections": pooled.to(dtype),
    }


register_family(
    Family(
        pipeline="HunyuanVideoPipeline",
        rows=("timestep", "encoder_hidden_states", "encoder_attention_mask", "pooled_projections", "guidance"),
        **TRUE_CFG,
        encode=_encode,
        embeds={
            "prompt_embeds": "encoder_hidden_states",
            "pooled_prompt_embeds": "pooled_projections",
            "prompt_attention_mask": "encoder_attention_mask",
        },
    )
)
