"""PixArt alpha and sigma: one call with [unconditional, conditional]; epsilon with learned variances.

The pipelines drop the variances after their combination of the halves.

Read in diffusers 0.42.1, ``pipelines/pixart_alpha/``.
"""

from __future__ import annotations

from collections.abc import Sequence

from .record import FAMILIES, Call, Family, Pipeline, Rows, tokens


def _encode(pipe: Pipeline, call: Call, texts: Sequence[str], as_prompt: bool) -> Rows:
    embeddings, mask, *_ = pipe.encode_prompt(
        list(texts),
        do_classifier_free_guidance=False,
        num_images_per_prompt=1,
        device=pipe._execution_device,
        clean_caption=call.get("clean_caption", True),
        max_sequence_length=tokens(call, 300 if "Sigma" in type(pipe).__name__ else 120, as_prompt),
    )
    return {"encoder_hidden_states": embeddings, "encoder_attention_mask": mask}


for _name in ("PixArtAlphaPipeline", "PixArtSigmaPipeline"):
    FAMILIES[_name] = Family(
        pipeline=_name,
        denoiser="transformer",
        positional=("hidden_states",),
        sample="hidden_states",
        rows=(
            "encoder_hidden_states",
            "encoder_attention_mask",
            "timestep",
            "added_cond_kwargs.resolution",
            "added_cond_kwargs.aspect_ratio",
        ),
        guided={"guidance_scale": 2.0},
        unguided={"guidance_scale": 1.0},
        owned={"guidance_scale": "cfg(scale)"},
        keywords=("mask_feature",),
        branches=lambda pipe, call: call["guidance_scale"] > 1,
        encode=_encode,
        embeds={"prompt_embeds": "encoder_hidden_states", "prompt_attention_mask": "encoder_attention_mask"},
        cannot=lambda pipe: "",
    )
