"""The records of the pipeline families, one file a family; importing this package enters them."""

from . import (  # noqa: F401  an import of a file enters its records
    audioldm2,
    aura_flow,
    chroma,
    cogvideox,
    cogview4,
    ddpm,
    dit,
    flux,
    flux2,
    hidream,
    hunyuan_dit,
    hunyuan_video,
    kandinsky3,
    kolors,
    ltx,
    lumina2,
    mochi,
    pixart,
    qwen_image,
    sana,
    stable_audio,
    stable_diffusion,
    stable_diffusion_3,
    stable_diffusion_xl,
    wan,
    z_image,
)
from .record import FAMILIES, OWN

OWN.update(FAMILIES)
