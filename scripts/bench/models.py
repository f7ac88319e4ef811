"""The models that are measured: the bundled one, one with the shape of Stable Diffusion 1.5, or any folder."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...guidance.errors import UnsupportedPipelineError
from ...pipelines.families.lookup import family_of
from ...pipelines.models.loading import load, quiet

BUNDLED, SHAPED = "bundled", "sd15-shaped"


@dataclass(frozen=True)
class Model:
    """A model that is measured: how its pipeline is made, called and timed.

    Args:
        name: in the table.
        make: the pipeline.
        batches: images of a run.
        steps: of a run.
        apart: so many runs stand between two of the stock pipeline: of a slow network fewer of those are made.
        efficiency: what no rule is to fall below.
        call: arguments of a call beside prompts, steps and seeds.
    """

    name: str
    make: Callable[[], Any]
    batches: tuple[int, ...]
    steps: int
    apart: int = 1
    efficiency: float = 0.98
    call: tuple[tuple[str, Any], ...] = ()


def bundled() -> Any:
    """The bundled model, silent."""
    from ...pipelines import load_emoji

    quiet()
    pipe = load_emoji()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def shaped(unet: dict[str, Any] | None = None, text: dict[str, Any] | None = None) -> Any:
    """A StableDiffusionPipeline with the UNet and the text encoder of Stable Diffusion 1.5, and random weights.

    860 and 88 million parameters in float32, latents of 32x32. What a rule costs does not depend on the weights; they
    are made in place, not as a network to be trained is initialized, which takes longer than all else. The tokenizer,
    with its small vocabulary, and the decoder are the bundled model's.

    Args:
        unet: options of the UNet in the place of Stable Diffusion's: for tests.
        text: likewise of the text encoder.
    """
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel

    small = bundled()
    tokenizer = _long(small.tokenizer)
    options: dict[str, Any] = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, **(text or {})}
    config = _text_config(tokenizer, **options)
    # The defaults of the class are Stable Diffusion 1.5, but for the width of the text.
    shape = {"sample_size": 32, "cross_attention_dim": options["hidden_size"], **(unet or {})}
    with torch.device("meta"):
        network, encoder = UNet2DConditionModel(**shape), CLIPTextModel(config)
    pipe = StableDiffusionPipeline(
        vae=small.vae,
        text_encoder=filled(encoder),
        tokenizer=tokenizer,
        unet=filled(network),
        scheduler=small.scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@dataclass(frozen=True)
class Xl:
    """The size of a network of Stable Diffusion XL's shape; its own by default, 2.6 billion parameters.

    Args:
        width: channels of the first block; the others have twice and four times as many.
        layers: transformer layers of each block.
        text: widths of the two text encoders.
    """

    width: int = 320
    layers: tuple[int, int, int] = (1, 2, 10)
    text: tuple[int, int] = (768, 1280)


def xl_shaped(device: torch.device, dtype: torch.dtype, size: Xl) -> Any:
    """A StableDiffusionXLPipeline with random weights, the same for every type up to its rounding.

    The text encoders have two layers each, and with the tokenizer's and the decoder's sizes they are no part of what is
    measured: the network is.

    Args:
        device: where the weights are made, so that the host need not hold them.
        dtype: their type.
        size: of the network.
    """
    from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    small = bundled()
    tokenizer = _long(small.tokenizer)
    first, second = (
        _text_config(tokenizer, hidden_size=wide, intermediate_size=4 * wide, num_hidden_layers=2, projection_dim=wide)
        for wide in size.text
    )
    sizes = 256  # of the embedding of each of the six numbers that say how the picture was cut
    with torch.device("meta"):
        encoders = CLIPTextModel(first), CLIPTextModelWithProjection(second)
        network = UNet2DConditionModel(
            sample_size=128,
            block_out_channels=(size.width, 2 * size.width, 4 * size.width),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=size.layers,
            attention_head_dim=(size.width // 64, size.width // 32, size.width // 16),
            cross_attention_dim=sum(size.text),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=sizes,
            projection_class_embeddings_input_dim=size.text[1] + 6 * sizes,
        )
    encoder, encoder_2, unet = (filled(module, device, dtype) for module in (*encoders, network))
    pipe = StableDiffusionXLPipeline(
        vae=small.vae,
        text_encoder=encoder,
        text_encoder_2=encoder_2,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=unet,
        scheduler=small.scheduler,
        add_watermarker=False,
    ).to(device, dtype)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _long(tokenizer: Any) -> Any:
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.model_max_length = 77
    return tokenizer


def _text_config(tokenizer: Any, hidden_size: int, **options: Any) -> Any:
    from transformers import CLIPTextConfig

    options = {"num_attention_heads": hidden_size // 64, "vocab_size": len(tokenizer), **options}
    return CLIPTextConfig(hidden_size=hidden_size, **options, bos_token_id=0, eos_token_id=1, pad_token_id=1)


CPU = torch.device("cpu")


@torch.no_grad()
def filled(module: torch.nn.Module, device: torch.device = CPU, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    """A module made on "meta" with weights as a layer's are at the start: an answer that neither vanishes nor grows."""
    module = module.to(dtype).to_empty(device=device).eval()
    generator = torch.Generator(device).manual_seed(0)
    for name, parameter in module.named_parameters():
        if parameter.ndim < 2:
            parameter.fill_(float(name.endswith("weight")))  # norms; no biases
        else:
            bound = (3 / parameter[0].numel()) ** 0.5
            drawn = torch.empty(parameter.shape, device=device)  # in float32: the same numbers for every type
            parameter.copy_(drawn.uniform_(-bound, bound, generator=generator))
    for name, buffer in module.named_buffers():
        if name.endswith("position_ids"):
            buffer.copy_(torch.arange(buffer.shape[-1]).expand(buffer.shape))
    return module


MODELS: tuple[Model, ...] = (
    Model(BUNDLED, bundled, (1, 4, 16), steps=20),
    Model(SHAPED, shaped, (1,), steps=3, apart=6, efficiency=0.99),
)


def of_folder(name: str, batches: Sequence[int], steps: int) -> Model:
    """A model that a user names, a folder or hub id.

    Raises:
        InputError, UnsupportedPipelineError: it cannot be loaded, or has no guidance of its own to compare with.
    """
    pipe, _ = load(name, torch.float32, "cpu")
    if not family_of(pipe).scale:
        raise UnsupportedPipelineError(
            f"{type(pipe).__name__} has no guidance of its own that rules could be measured against"
        )
    return Model(name, lambda: pipe, tuple(batches), steps)
