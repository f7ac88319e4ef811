"""Gradients through a pipeline's networks: where they cannot work."""

from __future__ import annotations

from typing import Any

from ..guidance.errors import UnsupportedPipelineError


def check_backward(module: Any) -> None:
    """Refuse a network whose weights are moved away before a backward pass needs them.

    Raises:
        UnsupportedPipelineError: it is offloaded, or quantized in a way that has no backward pass.
    """
    for part in module.modules():
        hook = vars(part).get("_hf_hook")
        registry = vars(part).get("_diffusers_hook")
        grouped = any("group_offloading" in name for name in getattr(registry, "hooks", ()))
        if getattr(hook, "offload", False) or hasattr(hook, "prev_module_hook") or grouped:
            raise UnsupportedPipelineError(
                f"{type(module).__name__} is offloaded, and its weights are gone when the gradient comes back through "
                "it; keep it on the device (no enable_*_offload), or take a rule that does not go through the "
                "denoiser, such as tfg(..., mu=1) without rho"
            )
