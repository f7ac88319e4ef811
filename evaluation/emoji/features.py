"""Features of a network trained on ImageNet: what tells pictures apart by texture and parts, not by pixels."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from ..extractors import Extractor, load


def network() -> Extractor:
    """EfficientNet-Lite0, whose weights come inside a package: the extractor of `guidestack.evaluation`."""
    return load("efficientnet-lite0")


def pooled(net: Extractor, images: NDArray[np.float32], batch: int = 64) -> NDArray[np.float32]:
    """Unit vectors ``(N, 1280)`` of pictures ``(N, 64, 64, 3)`` in [0, 1]."""
    parts = torch.split(torch.from_numpy(images), batch)
    bar = tqdm(parts, desc="features", unit="batch", disable=None)
    return units(np.concatenate([net.of_pixels(part * 255) for part in bar]))


def units(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows of length 1."""
    return torch.nn.functional.normalize(torch.from_numpy(features), dim=1).numpy()
