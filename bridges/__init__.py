"""Stacks in other programs' sampling loops: diffusers' Modular pipelines, and samplers of the k-diffusion form."""

from .denoiser import GuidedDenoiser, as_denoiser

__all__ = ["GuidedDenoiser", "as_denoiser"]  # the guider, a class of diffusers', is imported by whoever uses it
