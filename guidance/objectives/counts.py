"""Counts as objectives: the counter need not be differentiable, since a density beside it gives the gradient."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import RuleError
from ..fields import SMALLEST, number, whole
from ..notation.objectives import register_objective
from ..objective import Objective


class Counted(Objective):
    r"""A wanted count: :math:`\log f = -|\sum_p d_p(x_0) / s - n|`, with the scale s set anew at every picture.

    .. math:: s = \frac{\sum_p d_p(x_0)}{c(x_0)}

    The density d is differentiable and says how much of what is counted is at a pixel; the counter c need not be. The
    scale is a constant to the gradient, so that the value is the counter's own error, :math:`-|c(x_0) - n|`, and the
    gradient that of the density: it increases the density if too few are counted, decreases it if too many, and is 0 if
    the count is right.
    Where nothing is counted, s is `unit`.

    A subclass is a frozen dataclass that declares `wanted` (n) and implements `density` and `counts`.

    References:
        Zafar, Wolf and Schwartz, "Iterative Object Count Optimization for Text-to-image Diffusion Models",
        arXiv:2408.11721, whose scale is set by a detector's count.
    """

    wanted: int

    def density(self, x0: Tensor) -> Tensor:
        """Return the density at each pixel of pictures ``(B, 3, H, W)``: shape ``(B, H, W)``, >= 0."""
        raise NotImplementedError

    def counts(self, x0: Tensor) -> Tensor:
        """Return the counter's number for each picture, shape ``(B,)``, without a gradient."""
        raise NotImplementedError

    def unit(self, x0: Tensor) -> float:
        """The scale of a picture in which nothing is counted: what one of them amounts to."""
        return x0.shape[-2] * x0.shape[-1] / (4.0 * max(self.wanted, 1))

    def __call__(self, x0: Tensor) -> Tensor:
        """``log f`` of pictures ``(B, 3, H, W)``, shape ``(B,)``."""
        total = self.density(x0).flatten(1).sum(1)
        with torch.no_grad():
            found = self.counts(x0).to(total)
            scale = (total / found).where(found > 0, torch.full_like(total, self.unit(x0))).clamp_min(1e-6)
        return -(total / scale - self.wanted).abs()


def components(inside: Tensor, least: int = 1) -> Tensor:
    """How many connected parts masks have.

    Args:
        inside: booleans, shape ``(B, H, W)``. Neighbours touch at a side or a corner.
        least: pixels that a part has at least, to count.

    Returns:
        Whole numbers, shape ``(B,)``. Waits for their device.

    >>> import torch
    >>> rows = ["#..#", "#...", ".#.#"]
    >>> components(torch.tensor([[[one == "#" for one in row] for row in rows]]))
    tensor([3])
    """
    height, width = inside.shape[1:]
    own = torch.arange(1, height * width + 1, device=inside.device, dtype=torch.float32).reshape(height, width)
    marked = own * inside
    while True:  # the largest number of a part spreads through it
        spread = functional.max_pool2d(marked[:, None], 3, 1, 1)[:, 0] * inside
        if torch.equal(spread, marked):
            break
        marked = spread
    sizes = torch.zeros(len(inside), height * width + 1, device=inside.device)
    sizes.scatter_add_(1, marked.flatten(1).long(), torch.ones_like(marked).flatten(1))
    return (sizes[:, 1:] >= least).sum(1)


@register_objective("blobs")
@dataclass(frozen=True)
class Blobs(Counted):
    r"""The picture has so many blobs: connected parts that are not of the background's color.

    :math:`d_p = 1 - \exp(-\|x_p - b\|^2 / (2 a^2))` with b the median color of the border, a constant to the gradient.
    A pixel belongs to a blob where d is above 1/2.

    Args:
        wanted: n, how many, from 0.
        apart: a, how far a color is from the background's to stand out, above 0, in units of the range of a pixel.
        least: pixels that a blob has at least.
        border: width of the border in pixels.

    Waits for the device, as it counts.
    """

    wanted: int
    apart: float = 0.2
    least: int = 8
    border: int = 3

    def __post_init__(self) -> None:
        whole(self, "wanted", 0)
        if number(self, "apart", 0) < SMALLEST:
            raise RuleError(f"Blobs: apart must be above 0, {SMALLEST:g} at least; got {self.apart!r}")
        whole(self, "least", 1)
        whole(self, "border", 1)

    def density(self, x0: Tensor) -> Tensor:
        """How much each pixel stands out, in [0, 1], shape ``(B, H, W)``."""
        edge = torch.ones(x0.shape[-2:], dtype=torch.bool, device=x0.device)
        edge[self.border : -self.border, self.border : -self.border] = False
        background = x0.detach()[..., edge].float().median(2).values.to(x0.dtype)
        away = (x0 - background[..., None, None]).square().sum(1)
        return 1 - (-away / (2 * self.apart**2)).exp()

    def counts(self, x0: Tensor) -> Tensor:
        """How many blobs there are in each picture, shape ``(B,)``."""
        with torch.no_grad():
            return components(self.density(x0) > 0.5, self.least)
