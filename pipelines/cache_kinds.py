"""The feature caches of diffusers that guidestack knows: how each of them counts and reuses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Kind:
    """How one feature cache of diffusers counts and reuses.

    Args:
        name: of the cache, as users know it.
        counts: whether it counts calls, so that a context that was left out at a step cannot go on.
        reused: whether the last call of a context reused what the cache held, given the context's state.
        reuses: of a cache without contexts, whether the next call will, given its hook.
        exact: whether it works with the pipeline's own calls only.
    """

    name: str
    counts: bool = True
    reused: Callable[[Any], bool] = lambda state: False
    reuses: Callable[[Any], bool] = lambda hook: False
    exact: bool = False


def _left_out(state: Any) -> bool:
    return not state.should_compute


def _within(hook: Any, window: tuple[int, int]) -> bool:
    return bool(window[0] < hook.current_timestep_callback() < window[1])


def _broadcasts(hook: Any) -> bool:
    state = hook.state
    held = state.cache is not None and state.iteration % hook.block_skip_range != 0
    return held and _within(hook, hook.timestep_skip_range)


def _leaves_unconditional_out(hook: Any) -> bool:
    held = hook.state.iteration > 0 and hook.state.iteration % hook.unconditional_batch_skip_range != 0
    return held and not hook.is_guidance_distilled and _within(hook, hook.unconditional_batch_timestep_skip_range)


MAG = "mag_cache_leader_block_hook"
KINDS = {
    "fbc_leader_block_hook": Kind("FirstBlockCache", counts=False, reused=_left_out),
    MAG: Kind("MagCache", reused=_left_out),
    "taylorseer_cache": Kind("TaylorSeer", reused=lambda state: state.current_step != state.last_update_step),
    "sea_cache_root": Kind("SeaCache", counts=False, reused=lambda state: state.consecutive_cached > 0),
    "text_kv_cache_transformer": Kind("TextKVCache", counts=False),
    "text_kv_cache_block": Kind("TextKVCache", counts=False),
    "pyramid_attention_broadcast": Kind("PyramidAttentionBroadcast", reuses=_broadcasts),
    "faster_cache_denoiser": Kind("FasterCache", reuses=_leaves_unconditional_out, exact=True),
    "faster_cache_block": Kind("FasterCache", exact=True),
}
"""diffusers' caches by the name under which they hook into a module."""
