"""Edits of a denoiser for one call, described by a `Perturbation`: see `edit`."""

from .architecture import Architecture, Block, architecture
from .edit import KINDS, PERTURBATIONS, SHIFT, Call, Kind, check, edited, time_argument

__all__ = [
    "KINDS",
    "PERTURBATIONS",
    "SHIFT",
    "Architecture",
    "Block",
    "Call",
    "Kind",
    "architecture",
    "check",
    "edited",
    "time_argument",
]
