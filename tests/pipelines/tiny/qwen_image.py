"""QwenImage: text to image, from a picture, inpainting."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import torch

from . import Tiny
from .parts import flow, masks, pictures, quiet
from .text import WIDTH, decoder_options, louder, qwen_tokenizer, request

SCALE, OFF, ON = "true_cfg_scale", 1.0, 5.0


def make() -> Any:
    from diffusers import AutoencoderKLQwenImage, QwenImagePipeline, QwenImageTransformer2DModel
    from tokenizers import AddedToken
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    torch.manual_seed(0)
    transformer = QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=1,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(4, 4, 8),
    )
    louder(transformer, ("txt_in", "add_v_proj", "to_out"), 4)
    autoencoder = AutoencoderKLQwenImage(
        base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, latents_mean=[0.0] * 4, latents_std=[1.0] * 4
    )
    tokenizer = qwen_tokenizer()
    words = len(tokenizer) + 40  # and the template
    config = Qwen2_5_VLConfig(
        text_config=decoder_options(words)
        | {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}},
        vision_config={
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            "out_hidden_size": WIDTH,
            "patch_size": 2,
        },
        vision_start_token_id=0,
        vision_end_token_id=0,
        vision_token_id=0,
        image_token_id=0,
        video_token_id=0,
    )
    pipe = QwenImagePipeline(
        scheduler=flow(use_dynamic_shifting=True),
        vae=autoencoder,
        text_encoder=Qwen2_5_VLForConditionalGeneration(config),
        tokenizer=tokenizer,
        transformer=transformer,
    )
    # The template up to the prompt, in as many tokens as the real tokenizer makes of it.
    beginning = pipe.prompt_template_encode.partition("{}")[0]
    first, cut = "<|im_start|>", pipe.prompt_template_encode_start_idx
    marks = [len(first) + round((len(beginning) - len(first)) * i / (cut - 1)) for i in range(cut)]
    pieces = [beginning[start:stop] for start, stop in itertools.pairwise(marks)]
    tokenizer.add_tokens([AddedToken(piece, special=True, normalized=False) for piece in pieces])
    assert len(tokenizer(beginning).input_ids) == cut
    assert len(tokenizer) <= words
    return quiet(pipe)


def arguments(batch: int, negative: bool = False, **more: Any) -> dict[str, Any]:
    return request(batch, negative, {"height": 64, "width": 64, "max_sequence_length": 32}, more)


def _of(cls: str) -> Any:
    import diffusers

    return quiet(getattr(diffusers, cls)(**make().components))


def _from_picture(batch: int, negative: bool = False, **more: Any) -> dict[str, Any]:
    given = {"image": pictures(batch, 64), "strength": 0.7, "num_inference_steps": 3}
    return arguments(batch, negative, **{**given, **more})


def _inpaint(batch: int, negative: bool = False, **more: Any) -> dict[str, Any]:
    return _from_picture(batch, negative, **{"mask_image": masks(batch, 64), **more})


IMAGE_TO_IMAGE = Tiny(functools.partial(_of, "QwenImageImg2ImgPipeline"), _from_picture, SCALE)
INPAINT = Tiny(functools.partial(_of, "QwenImageInpaintPipeline"), _inpaint, SCALE)
