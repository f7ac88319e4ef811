"""Edits of a denoiser for one call: `edit` for those that rules guide away from, `own_pass` for the prompt's own."""

from .architecture import Architecture, Block, architecture
from .edit import KINDS, PERTURBATIONS, SHIFT, Call, Kind, check, edited, time_argument
from .own_pass import EDITS, Carried, carried, joint, own_pass
from .own_pass import check as check_own_pass

__all__ = [
    "EDITS",
    "KINDS",
    "PERTURBATIONS",
    "SHIFT",
    "Architecture",
    "Block",
    "Call",
    "Carried",
    "Kind",
    "architecture",
    "carried",
    "check",
    "check_own_pass",
    "edited",
    "joint",
    "own_pass",
    "time_argument",
]
