"""AudioLDM2Pipeline: text in two forms, one of them continued by a language model."""

from __future__ import annotations

from typing import Any

import torch

from .parts import quiet, vae
from .text import WORDS, louder, request, roberta_tokenizer, t5_encoder, t5_tokenizer

SCALE, OFF, ON = "guidance_scale", 1.0, 3.5


def _clap(words: int) -> Any:
    """Only its text encoder is used, unless there are several waveforms for a prompt."""
    from transformers import ClapConfig, ClapModel

    text = {
        "vocab_size": words,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 40,
        "projection_dim": 16,
    }
    audio = {
        "spec_size": 64,
        "window_size": 4,
        "num_mel_bins": 64,
        "patch_size": 8,
        "patch_stride": 8,
        "patch_embeds_hidden_size": 4,
        "hidden_size": 8,
        "depths": [1, 1],
        "num_hidden_layers": 2,
        "num_attention_heads": [2, 2],
        "projection_dim": 16,
    }
    return ClapModel(ClapConfig(text_config=text, audio_config=audio, projection_dim=16))


def make() -> Any:
    from diffusers import AudioLDM2Pipeline, AudioLDM2ProjectionModel, AudioLDM2UNet2DConditionModel, DDIMScheduler
    from transformers import ClapFeatureExtractor, GPT2Config, GPT2LMHeadModel, SpeechT5HifiGan, SpeechT5HifiGanConfig

    torch.manual_seed(0)
    unet = AudioLDM2UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=2,
        cross_attention_dim=(16, 16),
    )
    louder(unet, ("attn2.to_v", "attn2.to_out"), 6)
    language = GPT2Config(
        vocab_size=WORDS, n_positions=64, n_embd=16, n_layer=1, n_head=2, n_inner=16, bos_token_id=1, eos_token_id=2
    )
    vocoder = SpeechT5HifiGanConfig(
        model_in_dim=16,
        sampling_rate=160,
        upsample_initial_channel=8,
        upsample_rates=[2, 2],
        upsample_kernel_sizes=[4, 4],
        resblock_kernel_sizes=[3],
        resblock_dilation_sizes=[[1]],
        normalize_before=False,
    )
    tokenizer = roberta_tokenizer()
    pipe = AudioLDM2Pipeline(
        vae=vae(in_channels=1, out_channels=1),
        text_encoder=_clap(len(tokenizer)),
        text_encoder_2=t5_encoder(),
        projection_model=AudioLDM2ProjectionModel(text_encoder_dim=16, text_encoder_1_dim=16, langauge_model_dim=16),
        language_model=GPT2LMHeadModel(language),
        tokenizer=tokenizer,
        tokenizer_2=t5_tokenizer(),
        feature_extractor=ClapFeatureExtractor(),
        unet=unet,
        scheduler=DDIMScheduler(
            beta_start=0.0015,
            beta_end=0.0195,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        ),
        vocoder=SpeechT5HifiGan(vocoder),
    )
    return quiet(pipe)


def arguments(batch: int, negative: bool = False, **more: Any) -> dict[str, Any]:
    return request(batch, negative, {"max_new_tokens": 8}, more)
