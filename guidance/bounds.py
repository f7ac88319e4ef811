"""Upper bounds of what a user may ask for at once, for the readers of files and of command lines (docs/limits.md)."""

from __future__ import annotations

MAX_IMAGES = 100_000
"""Images of one call of a command."""
MOST_TOGETHER = 1024
"""Images, or runs, in one call of the network."""
LONGEST = 10_000
"""Characters of a prompt."""
LAST_SEED = 2**63 - 1
MOST_STEPS = 1000
DTYPES = ("float32", "float16", "bfloat16")
LARGEST_SCALE = 1000.0
"""Of a LoRA, a ControlNet or an IP-Adapter."""
