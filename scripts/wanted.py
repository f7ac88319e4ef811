"""What ``guidestack generate`` is asked for: its options, with types. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..guidance.words import were


def nothing_to_make(out: Path, there: int) -> str:
    """What is said where all images that are asked for are there."""
    return f"nothing to make in {out}: {were(there)} there already"


@dataclass(frozen=True)
class Wanted:
    """The options of ``guidestack generate``, as they were read; its ``--help`` says what each is.

    Args:
        given: the names of those that stand on the command line; the others have their defaults.
    """

    prompts: tuple[str, ...]
    prompts_from: str | None
    negative: tuple[str, ...]
    extra_prompt: tuple[str, ...]
    guidance: tuple[str, ...]
    axis: tuple[str, ...]
    model: str | None
    networks: Mapping[str, str]
    objectives: Mapping[str, str]
    lora: tuple[str, ...]
    controlnet: tuple[str, ...]
    control: tuple[Path, ...]
    ip_adapter: str | None
    ip_image: Path | None
    vae: str | None
    scheduler_config: str | None
    image: Path | None
    mask: Path | None
    strength: float | None
    weights: bool
    sampler: str | None
    steps: int
    sigmas: str | None
    timesteps: str | None
    seed: int
    count: int
    batch: int
    size: str | None
    dtype: str | None
    device: str | None
    offload: bool
    out: Path
    grid: Path | None
    like: Path | None
    overwrite: bool
    allow_pickle: bool
    given: frozenset[str] = frozenset()
