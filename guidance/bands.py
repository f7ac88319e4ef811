"""Low frequencies of pictures, per sample: the low band of a Laplacian pyramid, and a disc in the Fourier plane.

Both work on the last two axes of any tensor with a batch and channels before them, of any height and width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from .errors import RuleError
from .step import Run

LowPass = Callable[[Tensor], Tensor]


def check_picture(rule: object, run: Run) -> None:
    """Check that the samples of a run have a height and a width.

    Raises:
        RuleError: they are packed into tokens, or have fewer axes for another reason.
    """
    if len(run.shape) < 4:
        raise RuleError(
            f"{rule} splits pictures into frequencies, and samples of shape {run.shape[1:]} have no height and width; "
            "where latents are packed into tokens take a rule such as apg(scale) or cfg(scale)"
        )


def pyramid_low(value: Tensor) -> Tensor:
    """`value` without the high band of its Laplacian pyramid: halved and doubled again (Burt & Adelson 1983).

    Blurred by the kernel (1, 4, 6, 4, 1)/16 of each axis with reflected borders, reduced to half the size and brought
    back to the whole by linear interpolation, and blurred again; sides that are odd are rounded up.
    """
    height, width = value.shape[-2:]
    pictures = value.flatten(0, -3).unsqueeze(1)
    half = functional.interpolate(_blurred(pictures), ((height + 1) // 2, (width + 1) // 2), mode="bilinear")
    return _blurred(functional.interpolate(half, (height, width), mode="bilinear")).reshape(value.shape)


def _blurred(pictures: Tensor) -> Tensor:
    """By (1, 1)/2 four times along each axis: no convolution, which some devices round to TF32."""
    border = "reflect" if min(pictures.shape[-2:]) > 2 else "replicate"  # reflection needs three numbers
    pictures = functional.pad(pictures, (2, 2, 2, 2), mode=border)
    for _ in range(4):
        pictures = functional.avg_pool2d(pictures, 2, stride=1)
    return pictures


def disc_low(value: Tensor, cutoff: float) -> Tensor:
    """The frequencies of `value` within `cutoff` times half the smaller side, in periods per picture."""
    height, width = value.shape[-2:]
    rows = torch.fft.fftfreq(height, 1 / height, device=value.device)
    columns = torch.fft.rfftfreq(width, 1 / width, device=value.device)
    inside = rows.square()[:, None] + columns.square() <= (cutoff * min(height, width) / 2) ** 2
    low: Tensor = torch.fft.irfft2(torch.fft.rfft2(value) * inside, s=(height, width))
    return low
