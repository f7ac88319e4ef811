"""Z-Image: one call with [conditional, unconditional] as lists of samples; flow, with minus the velocity emitted.

Its own scale counts from 0: ``guidance_scale=s`` there is ``cfg(s + 1)`` here.

Read in diffusers 0.42.1, ``pipelines/z_image/pipeline_z_image.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from .record import Call, Family, Pipeline, Rows, register_family


def _encode(pipe: Pipeline, call: Call, texts: Sequence[str], as_prompt: bool) -> Rows:
    embeddings, _ = pipe.encode_prompt(
        list(texts),
        device=pipe._execution_device,
        do_classifier_free_guidance=False,
        max_sequence_length=call.get("max_sequence_length", 512),
    )
    return {"cap_feats": embeddings}


def _unpack(samples: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack(list(samples)).squeeze(2)


def _pack(samples: torch.Tensor) -> list[torch.Tensor]:
    return list(samples.unsqueeze(2).unbind())


Z_IMAGE = register_family(
    Family(
        pipeline="ZImagePipeline",
        positional=("x", "t", "cap_feats"),
        sample="x",
        rows=("t", "cap_feats"),
        listed=("cap_feats",),
        unpack=_unpack,
        pack=_pack,
        halves=("positive", "negative"),
        timestep="t",
        clock=lambda pipe, timestep: 1000 * (1 - timestep),
        negates=True,
        upcasts=True,
        guided={"guidance_scale": 1.0, "cfg_normalization": False, "cfg_truncation": 1.0},
        unguided={"guidance_scale": 0.0},
        owned={
            "guidance_scale": "cfg(scale + 1)",
            "cfg_normalization": "rescale(phi)",
            "cfg_truncation": "during(rule, progress=...)",
        },
        scratch=("_guidance_scale", "_cfg_normalization", "_cfg_truncation"),
        offset=1.0,
        encode=_encode,
        embeds={"prompt_embeds": "cap_feats"},
    )
)

register_family(replace(Z_IMAGE, pipeline="ZImageImg2ImgPipeline"))
