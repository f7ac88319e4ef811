"""The models that are measured: the bundled one, one with the shape of Stable Diffusion 1.5, or any folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...guidance.errors import UnsupportedPipelineError
from ...pipelines.family import family_of
from ..model import load, quiet

BUNDLED, SHAPED = "bundled", "sd15-shaped"


@dataclass(frozen=True)
class Model:
    """What is measured.

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
    import copy

    from diffusers import StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    small = bundled()
    tokenizer = copy.deepcopy(small.tokenizer)
    tokenizer.model_max_length = 77
    options: dict[str, Any] = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, **(text or {})}
    options = {"num_attention_heads": options["hidden_size"] // 64, "vocab_size": len(tokenizer), **options}
    config = CLIPTextConfig(**options, bos_token_id=0, eos_token_id=1, pad_token_id=1)
    # The defaults of the class are Stable Diffusion 1.5, but for the width of the text.
    shape = {"sample_size": 32, "cross_attention_dim": options["hidden_size"], **(unet or {})}
    with torch.device("meta"):
        network, encoder = UNet2DConditionModel(**shape), CLIPTextModel(config)
    pipe = StableDiffusionPipeline(
        vae=small.vae,
        text_encoder=_filled(encoder),
        tokenizer=tokenizer,
        unet=_filled(network),
        scheduler=small.scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@torch.no_grad()
def _filled(module: torch.nn.Module) -> torch.nn.Module:
    """A module made on "meta" with weights as a layer's are at the start: an answer that neither vanishes nor grows."""
    module = module.to_empty(device="cpu").eval()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in module.named_parameters():
        if parameter.ndim < 2:
            parameter.fill_(float(name.endswith("weight")))  # norms; no biases
        else:
            bound = (3 / parameter[0].numel()) ** 0.5
            parameter.uniform_(-bound, bound, generator=generator)
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
