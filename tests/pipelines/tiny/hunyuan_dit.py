"""HunyuanDiT, told the size and style as up to 1.1: v with learned variances, two text encoders; with a ControlNet."""

from __future__ import annotations

from typing import Any

import torch

from . import Tiny
from .parts import pictures, quiet, randomized, vae
from .text import bert_tokenizer, louder, request, t5_encoder, t5_tokenizer

SCALE, OFF, ON = "guidance_scale", 1.0, 5.0


def make(layers: int = 2) -> Any:
    from diffusers import DDPMScheduler, HunyuanDiT2DModel, HunyuanDiTPipeline
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    transformer = HunyuanDiT2DModel(
        sample_size=8,
        num_layers=layers,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        hidden_size=16,
        in_channels=4,
        cross_attention_dim=16,
        cross_attention_dim_t5=16,
        pooled_projection_dim=16,
    )
    louder(transformer, ("attn2.to_v", "attn2.to_out"), 6)
    tokenizer = bert_tokenizer()
    text = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=77,
    )
    scheduler = DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.02,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        steps_offset=1,
        clip_sample=False,
    )
    pipe = HunyuanDiTPipeline(
        vae=vae(blocks=4),
        text_encoder=BertModel(text),
        tokenizer=tokenizer,
        transformer=transformer,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        text_encoder_2=t5_encoder(),
        tokenizer_2=t5_tokenizer(),
    )
    return quiet(pipe)


def arguments(batch: int, negative: bool = False, **more: Any) -> dict[str, Any]:
    return request(batch, negative, {"height": 64, "width": 64, "use_resolution_binning": False}, more)


def _make_controlnet() -> Any:
    from diffusers import HunyuanDiT2DControlNetModel, HunyuanDiTControlNetPipeline

    found = make(4).components  # the first half has skips to the second, to which a ControlNet adds
    config = found["transformer"].config
    names = ("num_attention_heads", "attention_head_dim", "in_channels", "patch_size", "sample_size", "hidden_size",
             "cross_attention_dim", "cross_attention_dim_t5", "pooled_projection_dim")  # fmt: skip
    net = HunyuanDiT2DControlNetModel(transformer_num_layers=4, **{name: config[name] for name in names})
    randomized(net, 0.3, "controlnet_blocks", "input_block", "pos_embed_input")
    return quiet(HunyuanDiTControlNetPipeline(controlnet=net, **found, requires_safety_checker=False))


def _controlled(batch: int, negative: bool = False, **more: Any) -> dict[str, Any]:
    torch.manual_seed(11)  # the pipeline encodes its picture with the noise of the global generator
    return arguments(batch, negative, **{"control_image": pictures(batch, 64), **more})


CONTROLNET = Tiny(_make_controlnet, _controlled)
