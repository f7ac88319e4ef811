"""Shared by all tests: a tiny random Stable Diffusion pipeline, made on the spot, and one thread."""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"

import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)  # xdist runs a process for each core


def make_tokenizer(limit: int = 16) -> Any:
    from transformers import CLIPTokenizer

    letters = [chr(code) for code in range(33, 127)]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(letter + "</w>" for letter in letters)]
    return CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=limit)


def make_stable_diffusion(**unet_options: Any) -> Any:
    """A StableDiffusionPipeline with random weights and 8x8 latents; 16x16 pictures."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=16,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=2,
        cross_attention_dim=16,
        **unet_options,
    )
    vae = AutoencoderKL(
        sample_size=16,
        block_out_channels=(4, 4),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=2,
        latent_channels=4,
    )
    scheduler = DDIMScheduler(steps_offset=1, clip_sample=False)
    pipe = StableDiffusionPipeline(
        vae, CLIPTextModel(text), tokenizer, unet, scheduler, None, None, requires_safety_checker=False
    )
    pipe.set_progress_bar_config(disable=True)
    # Random weights answer all prompts nearly alike; louder text makes a difference that a wrong row would show.
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if "attn2.to_v" in name or "attn2.to_out" in name:
                parameter.mul_(6)
    return pipe.to("cpu")


def make_dit(out_channels: int = 8, **options: Any) -> Any:
    """A DiTPipeline with random weights, 1000 classes, learned variances and 8x8 latents; 16x16 pictures."""
    from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel

    torch.manual_seed(0)
    given = {"num_attention_heads": 2, "attention_head_dim": 4, "in_channels": 4, "num_layers": 2}
    transformer = DiTTransformer2DModel(**given, out_channels=out_channels, sample_size=8, **options)
    vae = AutoencoderKL(
        sample_size=16,
        block_out_channels=(4, 4),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=2,
        latent_channels=4,
    )
    # In training a class is left out now and then.
    pipe = DiTPipeline(transformer.eval(), vae, DDIMScheduler(clip_sample=False))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def make_unconditional(cls: str = "DDIMPipeline", **options: Any) -> Any:
    """A DDPMPipeline or DDIMPipeline with random weights; 8x8 pictures."""
    import diffusers

    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=4,
        **options,
    )
    scheduler = getattr(diffusers, cls.replace("Pipeline", "Scheduler"))(clip_sample=False)
    pipe = getattr(diffusers, cls)(unet, scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def _shared_dit() -> Any:
    return make_dit()


@pytest.fixture
def dit(_shared_dit: Any) -> Any:
    """The tiny DiT with a scheduler of its own, DDIM."""
    from diffusers import DDIMScheduler

    _shared_dit.scheduler = DDIMScheduler(clip_sample=False)
    return _shared_dit


@pytest.fixture(scope="session")
def _shared_unconditional() -> dict[str, Any]:
    return {name: make_unconditional(name) for name in ("DDPMPipeline", "DDIMPipeline")}


@pytest.fixture(params=["DDPMPipeline", "DDIMPipeline"])
def unconditional(request: pytest.FixtureRequest, _shared_unconditional: dict[str, Any]) -> Any:
    """Both tiny unconditional pipelines, one after the other."""
    return _shared_unconditional[request.param]


@pytest.fixture(scope="session")
def _shared_pipe() -> Any:
    return make_stable_diffusion()


@pytest.fixture
def pipe(_shared_pipe: Any) -> Iterator[Any]:
    """The tiny pipeline with a scheduler of its own, so that a test may exchange it."""
    scheduler = _shared_pipe.scheduler
    _shared_pipe.scheduler = copy.deepcopy(scheduler)
    yield _shared_pipe
    _shared_pipe.scheduler = scheduler


@pytest.fixture
def new_pipe() -> Callable[..., Any]:
    """Makes a tiny pipeline that the test may break."""
    return make_stable_diffusion


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory, _shared_pipe: Any) -> Any:
    """The tiny pipeline as a folder."""
    folder = tmp_path_factory.mktemp("tiny")
    _shared_pipe.save_pretrained(folder)
    return folder


@pytest.fixture
def own_rules() -> Iterator[None]:
    """The rules that a test registers are forgotten after it."""
    from guidestack.guidance.notation.registry import _ENTRIES, rules

    rules()
    before = dict(_ENTRIES)
    yield
    _ENTRIES.clear()
    _ENTRIES.update(before)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Any:
    """``command(*arguments) -> (exit status, stdout, stderr)`` of guidestack, in this process."""
    from guidestack.scripts import cli

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["guidestack", *map(str, arguments)])
        status = 0
        try:
            cli.main()
        except SystemExit as leave:
            status = int(leave.code or 0)
        out, err = capfd.readouterr()
        return status, out, err

    return call
