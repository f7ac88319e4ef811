"""Levels of any diffusers scheduler, and a plain sampling loop. Imports diffusers only when a scheduler is made."""

from .grid import Grid, Point
from .identity import scheduler_identity, weights_digest
from .inversion import invert
from .levels import entry, grid, parameterization, supported
from .loop import sample
from .names import SAMPLERS, by_name, canonical, scheduler_with_steps
from .noise import initial_noise

__all__ = [
    "SAMPLERS",
    "Grid",
    "Point",
    "by_name",
    "canonical",
    "entry",
    "grid",
    "initial_noise",
    "invert",
    "parameterization",
    "sample",
    "scheduler_identity",
    "scheduler_with_steps",
    "supported",
    "weights_digest",
]
