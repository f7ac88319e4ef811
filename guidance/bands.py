"""Low frequencies of pictures, per sample: the low band of a Laplacian pyramid, and a disc in the Fourier plane.

Both work on the last two axes of any tensor with a batch and channels before them, of any height and width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from .contrasting import Contrasting
from .errors import RuleError
from .step import Run, State

LowPass = Callable[[Tensor], Tensor]


class Banded(Contrasting):
    """A contrasting rule that splits samples into frequencies, for which they need a height and a width."""

    def init(self, run: Run) -> State:
        """Nothing to remember.

        Raises:
            RuleError: samples are packed into tokens, or have fewer axes for another reason.
        """
        if len(run.shape) < 4:
            raise RuleError(
                f"{self} splits pictures into frequencies, and samples of shape {run.shape[1:]} have no height and "
                "width; where latents are packed into tokens take a rule such as apg(scale) or cfg(scale)"
            )
        return ()


def pyramid_low(value: Tensor) -> Tensor:
    """`value` without the high band of its Laplacian pyramid: halved and doubled again (Burt & Adelson 1983).

    Blurred by the kernel (1, 4, 6, 4, 1)/16 of each axis with reflected borders, reduced to half the size and brought
    back to the whole by linear interpolation, and blurred again; sides that are odd are rounded up. All of that is
    linear and of each axis by itself: a small matrix on either side.
    """
    down, across = (_halved(size).to(value.device, value.dtype, non_blocking=True) for size in value.shape[-2:])
    return down @ value @ across.T


_KNOWN: dict[int, Tensor] = {}  # no decorator's cache: a compiler traces through those


def _halved(size: int) -> Tensor:
    """The matrix of one axis of so many numbers, in float64 on the host."""
    if size not in _KNOWN:
        _KNOWN[size] = _halving(size)
    return _KNOWN[size]


def _halving(size: int) -> Tensor:
    signals = torch.eye(size, dtype=torch.float64)[None]
    half = functional.interpolate(_blurred(signals), (size + 1) // 2, mode="linear")
    return _blurred(functional.interpolate(half, size, mode="linear"))[0].T


def _blurred(signals: Tensor) -> Tensor:
    border = "reflect" if signals.shape[-1] > 2 else "replicate"  # reflection needs three numbers
    padded = functional.pad(signals, (2, 2), mode=border)
    kernel = torch.tensor([1, 4, 6, 4, 1], dtype=signals.dtype) / 16
    return (padded.unfold(-1, 5, 1) * kernel).sum(-1)


def disc_low(value: Tensor, cutoff: float) -> Tensor:
    """The frequencies of `value` within `cutoff` times half the smaller side, in periods per picture."""
    height, width = value.shape[-2:]
    rows = torch.fft.fftfreq(height, 1 / height, device=value.device)
    columns = torch.fft.rfftfreq(width, 1 / width, device=value.device)
    inside = rows.square()[:, None] + columns.square() <= (cutoff * min(height, width) / 2) ** 2
    low: Tensor = torch.fft.irfft2(torch.fft.rfft2(value) * inside, s=(height, width))
    return low
