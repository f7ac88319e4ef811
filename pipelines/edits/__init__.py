"""Edits of a denoiser for one call, described by a `Perturbation`: see `edit`."""

from .architecture import Architecture, Block, architecture
from .edit import KINDS, PERTURBATIONS, Call, Kind, check, edited

__all__ = ["KINDS", "PERTURBATIONS", "Architecture", "Block", "Call", "Kind", "architecture", "check", "edited"]
