"""Tiny random pipelines, made on the spot: stock diffusers classes, no downloads, always the same weights.

A builder is a module, or a `Tiny` in a module of several; both have the same five names.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

PIPELINES: dict[str, str] = {
    "StableDiffusionXLPipeline": "stable_diffusion_xl:TEXT_TO_IMAGE",
    "StableDiffusionXLImg2ImgPipeline": "stable_diffusion_xl:IMAGE_TO_IMAGE",
    "StableDiffusionXLInpaintPipeline": "stable_diffusion_xl:INPAINT",
    "StableDiffusionXLInpaintPipeline, 9 channels": "stable_diffusion_xl:INPAINT_9",
    "StableDiffusionXLControlNetPipeline": "stable_diffusion_xl:CONTROLNET",
    "StableDiffusionXLControlNetImg2ImgPipeline": "stable_diffusion_xl:CONTROLNET_IMAGE_TO_IMAGE",
    "StableDiffusionXLControlNetInpaintPipeline": "stable_diffusion_xl:CONTROLNET_INPAINT",
    "StableDiffusionXLInstructPix2PixPipeline": "stable_diffusion_xl:PIX2PIX",
    "StableDiffusionImg2ImgPipeline": "stable_diffusion:IMAGE_TO_IMAGE",
    "StableDiffusionInpaintPipeline": "stable_diffusion:INPAINT",
    "StableDiffusionInpaintPipeline, 9 channels": "stable_diffusion:INPAINT_9",
    "StableDiffusionControlNetPipeline": "stable_diffusion:CONTROLNET",
    "StableDiffusionControlNetImg2ImgPipeline": "stable_diffusion:CONTROLNET_IMAGE_TO_IMAGE",
    "StableDiffusionControlNetInpaintPipeline": "stable_diffusion:CONTROLNET_INPAINT",
    "StableDiffusionInstructPix2PixPipeline": "stable_diffusion:PIX2PIX",
    "StableDiffusion3Pipeline": "stable_diffusion_3:TEXT_TO_IMAGE",
    "StableDiffusion3Img2ImgPipeline": "stable_diffusion_3:IMAGE_TO_IMAGE",
    "StableDiffusion3InpaintPipeline": "stable_diffusion_3:INPAINT",
    "StableDiffusion3InpaintPipeline, 33 channels": "stable_diffusion_3:INPAINT_33",
    "StableDiffusion3ControlNetPipeline": "stable_diffusion_3:CONTROLNET",
    "StableDiffusion3ControlNetInpaintingPipeline": "stable_diffusion_3:CONTROLNET_INPAINT",
    "FluxPipeline": "flux:OPEN",
    "FluxPipeline, distilled": "flux:DISTILLED",
    "FluxImg2ImgPipeline": "flux:IMAGE_TO_IMAGE",
    "FluxInpaintPipeline": "flux:INPAINT",
    "FluxControlNetPipeline": "flux:CONTROLNET",
    "FluxKontextPipeline": "flux:EDIT",
    "QwenImagePipeline": "qwen_image",
    "QwenImageImg2ImgPipeline": "qwen_image:IMAGE_TO_IMAGE",
    "QwenImageInpaintPipeline": "qwen_image:INPAINT",
    "ChromaPipeline": "chroma",
    "ChromaImg2ImgPipeline": "chroma:IMAGE_TO_IMAGE",
    "AuraFlowPipeline": "aura_flow",
    "Lumina2Pipeline": "lumina2",
    "ZImagePipeline": "z_image",
    "ZImageImg2ImgPipeline": "z_image:IMAGE_TO_IMAGE",
    "Flux2KleinPipeline": "flux2_klein",
    "HiDreamImagePipeline": "hidream",
    "WanPipeline": "wan:ONE",
    "WanPipeline, two transformers": "wan:TWO",
    "WanPipeline, a timestep for each token": "wan:TOKENS",
    "WanImageToVideoPipeline": "wan:IMAGE_TO_VIDEO",
    "WanImageToVideoPipeline, a timestep for each token": "wan:IMAGE_TO_VIDEO_TOKENS",
    "WanVideoToVideoPipeline": "wan:VIDEO_TO_VIDEO",
    "CogVideoXPipeline": "cogvideox:DDIM",
    "CogVideoXPipeline, multistep": "cogvideox:DPM",
    "CogVideoXImageToVideoPipeline": "cogvideox:IMAGE_TO_VIDEO",
    "CogVideoXVideoToVideoPipeline": "cogvideox:VIDEO_TO_VIDEO",
    "LTXPipeline": "ltx",
    "LTXImageToVideoPipeline": "ltx:IMAGE_TO_VIDEO",
    "HunyuanVideoPipeline": "hunyuan_video",
    "MochiPipeline": "mochi",
    "CogView4Pipeline": "cogview4",
    "PixArtAlphaPipeline": "pixart:ALPHA",
    "PixArtSigmaPipeline": "pixart:SIGMA",
    "SanaPipeline": "sana",
    "HunyuanDiTPipeline": "hunyuan_dit",
    "HunyuanDiTControlNetPipeline": "hunyuan_dit:CONTROLNET",
    "KolorsPipeline": "kolors",
    "KolorsImg2ImgPipeline": "kolors:IMAGE_TO_IMAGE",
    "Kandinsky3Pipeline": "kandinsky3",
    "StableAudioPipeline": "stable_audio:EDM",
    "StableAudioPipeline, stochastic": "stable_audio:COSINE",
    "AudioLDM2Pipeline": "audioldm2",
}
"""The builder of each pipeline, after a comma its variant: a module of this package, or ``module:attribute``."""


@dataclass(frozen=True)
class Tiny:
    """A builder.

    Args:
        make: ``make()``, a new pipeline.
        arguments: ``arguments(batch, negative=False, **more)``, fresh arguments of one call, without guidance.
        SCALE: name of the pipeline's guidance argument.
        OFF: its value without guidance.
        ON: its value with guidance.
    """

    make: Callable[[], Any]
    arguments: Callable[..., dict[str, Any]]
    SCALE: str = "guidance_scale"
    OFF: float = 1.0
    ON: float = 5.0


def load(name: str) -> Any:
    """The builder of a pipeline of the table."""
    module, _, attribute = PIPELINES[name].partition(":")
    builder = importlib.import_module(f"{__name__}.{module}")
    return getattr(builder, attribute) if attribute else builder
