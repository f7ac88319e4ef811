"""Kolors, without its tokenizer: that one needs a package which reads trained vocabularies only."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from . import Tiny
from .parts import pictures, quiet, unet, vae
from .text import WORDS, fast_tokenizer, louder, request

SCALE, OFF, ON = "guidance_scale", 1.0, 5.0


class _Tokenizer:
    """Answers as ChatGLM's: padded on the left, and with positions."""

    def __init__(self) -> None:
        self.letters = fast_tokenizer(padding_side="left")

    def __call__(self, texts: Any, **options: Any) -> Any:
        found = self.letters(texts, **options)
        found["position_ids"] = (found["attention_mask"].cumsum(-1) - 1).clamp(min=0)
        return found


def make() -> Any:
    from diffusers import EulerDiscreteScheduler

    with warnings.catch_warnings():  # the text encoder compiles a function in a way that torch has announced to end
        warnings.simplefilter("ignore", DeprecationWarning)
        from diffusers.pipelines.kolors.pipeline_kolors import KolorsPipeline
        from diffusers.pipelines.kolors.text_encoder import ChatGLMConfig, ChatGLMModel

    torch.manual_seed(0)
    text_encoder = ChatGLMModel(
        ChatGLMConfig(
            num_layers=2,
            padded_vocab_size=WORDS,
            hidden_size=16,
            ffn_hidden_size=16,
            kv_channels=8,
            num_attention_heads=2,
            seq_length=512,
            add_qkv_bias=True,
            multi_query_attention=True,
            multi_query_group_num=1,
            original_rope=True,
        )
    )
    # The class leaves its weights as the memory was.
    with torch.no_grad():
        for name, parameter in text_encoder.named_parameters():
            if "layernorm" in name:
                parameter.fill_(1)
            else:
                parameter.normal_(std=0.3)
    network = unet(
        16,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=16 + 6 * 4,
        encoder_hid_dim=16,
        encoder_hid_dim_type="text_proj",
    )
    louder(network, ("attn2.to_v", "attn2.to_out"), 6)
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.014, beta_schedule="scaled_linear", steps_offset=1, timestep_spacing="leading"
    )
    return quiet(KolorsPipeline(vae(), text_encoder, _Tokenizer(), network, scheduler))


def arguments(batch: int, negative: bool = False, **more: Any) -> dict[str, Any]:
    return request(batch, negative, {"height": 16, "width": 16}, more)


def _make_image_to_image() -> Any:
    made = make()  # whose imports are the first
    from diffusers.pipelines.kolors.pipeline_kolors_img2img import KolorsImg2ImgPipeline

    return quiet(KolorsImg2ImgPipeline(**made.components))


def _from_picture(batch: int, negative: bool = False, **more: Any) -> dict[str, Any]:
    given = {"image": pictures(batch), "strength": 0.7, "num_inference_steps": 3}
    return arguments(batch, negative, **{**given, **more})


IMAGE_TO_IMAGE = Tiny(_make_image_to_image, _from_picture)
