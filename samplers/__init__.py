"""Levels of any diffusers scheduler, and a plain sampling loop. Imports diffusers only when a scheduler is made."""

from .affine import Affine, restore
from .grid import Grid, Point
from .identity import scheduler_identity, weights_digest
from .inversion import invert
from .levels import entry, grid, parameterization, supported
from .likelihood import Likelihood, likelihood
from .loop import sample
from .names import SAMPLERS, by_name, canonical, scheduler_with_steps
from .noise import initial_noise
from .probability_flow import Flowed, probability_flow
from .red_diff import red_diff
from .reflected import reflected

__all__ = [
    "SAMPLERS",
    "Affine",
    "Flowed",
    "Grid",
    "Likelihood",
    "Point",
    "by_name",
    "canonical",
    "entry",
    "grid",
    "initial_noise",
    "invert",
    "likelihood",
    "parameterization",
    "probability_flow",
    "red_diff",
    "reflected",
    "restore",
    "sample",
    "scheduler_identity",
    "scheduler_with_steps",
    "supported",
    "weights_digest",
]
