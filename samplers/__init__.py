"""Levels of any diffusers scheduler, and a plain sampling loop. Imports diffusers only when a scheduler is made."""

from .grid import Grid, Point
from .levels import grid, parameterization, supported
from .loop import sample
from .names import SAMPLERS, by_name
from .noise import initial_noise

__all__ = ["SAMPLERS", "Grid", "Point", "by_name", "grid", "initial_noise", "parameterization", "sample", "supported"]
