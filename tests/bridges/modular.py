"""Tiny Modular pipelines: the parts of the tiny classic ones, under blocks of diffusers."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..pipelines.tiny import load
from ..pipelines.tiny.text import NEGATIVES, PROMPTS

FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "sdxl": ("StableDiffusionXLPipeline", "StableDiffusionXLAutoBlocks", {"height": 16, "width": 16}),
    "sd3": ("StableDiffusion3Pipeline", "StableDiffusion3AutoBlocks",
            {"height": 16, "width": 16, "max_sequence_length": 16}),
    "z_image": ("ZImagePipeline", "ZImageAutoBlocks", {"height": 16, "width": 16, "max_sequence_length": 32}),
    "qwen_image": ("QwenImagePipeline", "QwenImageAutoBlocks", {"height": 64, "width": 64, "max_sequence_length": 32}),
    "wan": ("WanPipeline", "WanBlocks", {"height": 64, "width": 64, "num_frames": 5, "max_sequence_length": 16}),
}  # fmt: skip
"""Of each family the classic pipeline, the blocks, and the arguments of a small call."""


@dataclass
class Pair:
    """A classic pipeline and a Modular one with the same parts."""

    name: str
    classic: Any
    modular: Any
    given: dict[str, Any]

    @property
    def denoiser(self) -> Any:
        return self.modular.unet if self.name == "sdxl" else self.modular.transformer

    def use(self, scheduler: Any) -> None:
        """Give both another scheduler."""
        self.classic.scheduler = scheduler
        self.modular.update_components(scheduler=scheduler)

    def call(self, batch: int, negative: bool, more: dict[str, Any]) -> dict[str, Any]:
        call = {"prompt": PROMPTS[:batch], "num_inference_steps": 4, **self.given}
        call["generator"] = [torch.Generator().manual_seed(7 + sample) for sample in range(batch)]
        if negative:
            call["negative_prompt"] = NEGATIVES[:batch]
        return {**call, **more}

    def run(self, guider: Any, batch: int = 2, negative: bool = True, **more: Any) -> Tensor:
        """The latents of the Modular pipeline under a guider."""
        self.modular.update_components(guider=guider)
        call = self.call(batch, negative, {"output_type": "pt", **more})
        latents: Tensor = self.modular(**call).get("latents")
        return latents

    def guided(self, stack: Any, batch: int = 2, negative: bool = True, **more: Any) -> tuple[Tensor, Any]:
        """The latents of the classic pipeline under `guide`, and the report."""
        import guidestack as gs

        guided = gs.guide(self.classic, stack)
        latents = guided(**self.call(batch, negative, {"output_type": "latent", **more}))[0]
        if self.name == "qwen_image":
            side = self.given["height"]
            latents = type(self.classic)._unpack_latents(latents, side, side, self.classic.vae_scale_factor)
        return latents, guided.report


@functools.cache
def pair(name: str) -> Pair:
    """The pair of a family, made once."""
    import diffusers
    import diffusers.modular_pipelines as blocks

    diffusers.logging.set_verbosity_error()
    classic_name, blocks_name, given = FAMILIES[name]
    classic = load(classic_name).make()
    modular = getattr(blocks, blocks_name)().init_pipeline()
    known = {name: part for name, part in classic.components.items() if part is not None}
    modular.update_components(**{name: part for name, part in known.items() if name in modular._component_specs})
    modular.set_progress_bar_config(disable=True)
    for block in every_block(modular._blocks):
        block.set_progress_bar_config(disable=True)
    return Pair(name, classic, modular, given)


def every_block(block: Any) -> Any:
    """The blocks inside a block that show progress."""
    if hasattr(block, "set_progress_bar_config"):
        yield block
    for inner in getattr(block, "sub_blocks", {}).values():
        yield from every_block(inner)
