"""AudioLDM 2: one call with [unconditional, conditional]. Sound instead of pictures.

Its negative prompts are padded or cut to the length of the longest prompt, and what its language model goes on with
depends on that length: so are all other prompts here.

Read in diffusers 0.42.1, ``pipelines/audioldm2/pipeline_audioldm2.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...guidance.errors import UnsupportedPipelineError
from .record import Call, Family, Pipeline, Rows, register_family


def _encode(pipe: Pipeline, call: Call, texts: Sequence[str], as_prompt: bool) -> Rows:
    transcribed = call.get("transcription") is not None
    if as_prompt and transcribed:
        raise UnsupportedPipelineError("a further prompt of AudioLDM 2 would need a transcription of its own")
    beside: dict[str, Any] = {"prompt": None}
    if call.get("prompt") is not None:
        prompts = [call["prompt"]] if isinstance(call["prompt"], str) else call["prompt"]
        longest = max(prompts, key=lambda one: len(pipe.tokenizer_2(one).input_ids))
        beside["prompt"] = [longest] * len(texts)
        beside["transcription"] = [call["transcription"]] * len(texts) if transcribed else None
    else:  # of embeddings only their length is looked at
        for name in ("prompt_embeds", "generated_prompt_embeds"):
            beside[name] = call[name][:1].expand(len(texts), *call[name].shape[1:])
    encoded = pipe.encode_prompt(
        device=pipe._execution_device,
        num_waveforms_per_prompt=1,
        do_classifier_free_guidance=True,
        negative_prompt=list(texts),
        max_new_tokens=call.get("max_new_tokens"),
        **beside,
    )
    names = ("encoder_hidden_states_1", "encoder_attention_mask_1", "encoder_hidden_states")
    return {name: value[: len(texts)] for name, value in zip(names, encoded, strict=True)}


register_family(
    Family(
        pipeline="AudioLDM2Pipeline",
        denoiser="unet",
        positional=("sample", "timestep"),
        sample="sample",
        rows=("encoder_hidden_states", "encoder_hidden_states_1", "encoder_attention_mask_1"),
        branches=lambda pipe, call: call["guidance_scale"] > 1,
        encode=_encode,
        embeds={
            "prompt_embeds": "encoder_hidden_states_1",
            "attention_mask": "encoder_attention_mask_1",
            "generated_prompt_embeds": "encoder_hidden_states",
        },
    )
)
