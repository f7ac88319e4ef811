"""Frequencies of pictures, weighed per sample: the low band of a Laplacian pyramid, and a disc in the Fourier plane.

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

Weigh = Callable[[Tensor, float, float], Tensor]


class Banded(Contrasting):
    """Base class of contrasting rules that split samples into frequencies, which need a height and a width."""

    def init(self, run: Run) -> State:
        """Check that samples have a height and a width; the rule has no state.

        Raises:
            RuleError: samples are packed into tokens, or have fewer axes for another reason.
        """
        if len(run.shape) < 4:
            raise RuleError(
                f"{self} splits pictures into frequencies, and samples of shape {run.shape[1:]} have no height and "
                "width; where latents are packed into tokens take a rule such as apg(scale) or cfg(scale)"
            )
        return ()


def pyramid_low(value: Tensor, low: float, high: float) -> Tensor:
    """`value` with `low` times what its Laplacian pyramid has below the high band, and `high` times that band.

    What is below is halved and doubled again (Burt & Adelson 1983): blurred by the kernel (1, 4, 6, 4, 1)/16 of each
    axis with reflected borders, reduced to half the size and brought back to the whole by linear interpolation, and
    blurred again; sides that are odd are rounded up. All of that is linear and of each axis by itself: small matrices
    on either side, and the products are smallest by way of the half size.
    """
    flat = value.flatten(0, -3)
    (down, up), (right, left) = (
        (one.to(value.device, value.dtype, non_blocking=True) for one in _halved(size)) for size in value.shape[-2:]
    )
    half = down.expand(len(flat), -1, -1).bmm(flat) @ right.T @ left.T
    whole = torch.baddbmm(flat, up.expand(len(flat), -1, -1), half, beta=high, alpha=low - high)
    return whole.reshape(value.shape)


_KNOWN: dict[int, tuple[Tensor, Tensor]] = {}  # no decorator's cache: a compiler traces through those


def _halved(size: int) -> tuple[Tensor, Tensor]:
    """The matrices of one axis of so many numbers, to half the size and back, in float64 on the host."""
    if size not in _KNOWN:
        small = (size + 1) // 2
        _KNOWN[size] = (
            functional.interpolate(_blurred(_unit(size)), small, mode="linear")[0].T.contiguous(),
            _blurred(functional.interpolate(_unit(small), size, mode="linear"))[0].T.contiguous(),
        )
    return _KNOWN[size]


def _unit(size: int) -> Tensor:
    """A signal for each place, which is 1 there; shape ``(1, size, size)``."""
    return torch.eye(size, dtype=torch.float64)[None]


def _blurred(signals: Tensor) -> Tensor:
    border = "reflect" if signals.shape[-1] > 2 else "replicate"  # reflection needs three numbers
    padded = functional.pad(signals, (2, 2), mode=border)
    kernel = torch.tensor([1, 4, 6, 4, 1], dtype=signals.dtype) / 16
    return (padded.unfold(-1, 5, 1) * kernel).sum(-1)


def disc_low(value: Tensor, low: float, high: float, cutoff: float) -> Tensor:
    """`value` with `low` times its frequencies within a disc, and `high` times the others.

    Args:
        value: shape ``(..., H, W)``.
        low: factor within.
        high: factor outside.
        cutoff: the disc's radius over half the smaller side, in periods per picture.
    """
    height, width = value.shape[-2:]
    radius = cutoff * min(height, width) / 2
    rows = torch.fft.fftfreq(height, 1 / height, device=value.device)
    columns = torch.fft.rfftfreq(width, 1 / width, device=value.device)[: int(radius) + 1]  # no others have any within
    inside = (rows.square()[:, None] + columns.square() <= radius**2).to(value.dtype)
    waves = torch.fft.fft(torch.fft.rfft(value)[..., : len(columns)], dim=-2)
    lows: Tensor = torch.fft.irfft(torch.fft.ifft(waves.mul_(inside), dim=-2), n=width)
    return lows.mul_(low - high).add_(value, alpha=high)
