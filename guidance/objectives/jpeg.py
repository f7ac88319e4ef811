"""The size of the picture as a JPEG file: an objective without a gradient."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import ClassVar

import torch
from PIL import Image
from torch import Tensor

from ..errors import RuleError
from ..fields import whole
from ..notation.objectives import register_objective
from ..objective import Objective


@register_objective("jpeg")
@dataclass(frozen=True)
class JPEG(Objective):
    """The picture is simple: minus the size of its JPEG file in kilobytes of 1000. It has no gradient.

    Args:
        quality: of the file, 1 to 95.
    """

    differentiable: ClassVar[bool] = False

    quality: int = 90

    def __post_init__(self) -> None:
        whole(self, "quality", 1)
        if self.quality > 95:
            raise RuleError(f"JPEG: quality is between 1 and 95, got {self.quality}")

    def __call__(self, x0: Tensor) -> Tensor:
        """``log f`` of pictures ``(B, 3, H, W)``, shape ``(B,)``; waits for their device."""
        numbers = (x0.detach().float().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        sizes = []
        for one in numbers:
            file = io.BytesIO()
            Image.fromarray(one).save(file, "JPEG", quality=self.quality)
            sizes.append(-file.tell() / 1000)
        return torch.tensor(sizes).to(x0.device)
