"""CLIP score: how well an image fits its prompt, by a CLIP in the user's own folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from ...guidance.errors import InputError, RuleError
from .. import extractors
from .base import Features, Images, Labels, SampleMetric, Values
from .registry import register


@register("clip_score")
@dataclass(frozen=True)
class ClipScore(SampleMetric):
    """100 times the cosine of a CLIP's embeddings of image and prompt, and 0 where it is negative; in [0, 100].

    Hessel et al. 2021 (arXiv:2104.08718), with the factor 100 that is customary, not their 2.5.

    Args:
        model: a folder with a CLIP and its tokenizer, as transformers saves it, in safetensors.
    """

    better: ClassVar[str] = "up"
    range: ClassVar[tuple[float, float]] = (0.0, 100.0)

    model: str

    def __post_init__(self) -> None:
        if not isinstance(self.model, str) or not self.model:
            raise RuleError(f"clip_score: model is a folder with a CLIP as transformers saves it; got {self.model!r}")

    @property
    def extractor(self) -> str:
        """The text of the extractor: the image side of the CLIP."""
        return f"clip:{self.model}"

    def described(self) -> list[str]:
        """The full name of the CLIP with its resizing."""
        return [extractors.full_name(self.extractor)]

    def measure(self, images: Images, labels: Labels, prompts: Sequence[str], features: Features | None) -> Values:
        """The score of each image."""
        if features is None:
            raise InputError(f"{self} needs features of {self.extractor}")
        texts = list(dict.fromkeys(prompts))
        embedded = extractors.clip_texts(Path(self.model).expanduser(), texts).double().numpy()
        rows = embedded[[texts.index(prompt) for prompt in prompts]]
        inner = (features.astype(np.float64) * rows).sum(1)
        cosine = inner / (np.linalg.norm(features, axis=1) * np.linalg.norm(rows, axis=1)).clip(1e-12)
        scores: Values = 100 * cosine.clip(0)
        return scores
