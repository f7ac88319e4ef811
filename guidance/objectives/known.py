"""Known pixels: inpainting and outpainting, and a border of one color."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from ..errors import InputError, RuleError, warn
from ..fields import number
from ..notation.objectives import register_objective
from ..objective import Determining
from .color import Color
from .picture import NOTHING, Measured


def cells(known: Tensor, like: Tensor) -> Tensor:
    """Return a mask of `like`, pictures or latents: 1 in the cells of which every pixel is known.

    Args:
        known: the pixels that are, booleans of shape ``(H, W)``.
        like: shape ``(B, ..., h, w)``.

    Returns:
        1 and 0 in the type of `like`, shape ``(h, w)``.
    """
    unknown = functional.adaptive_max_pool2d((~known)[None].to(like.dtype), like.shape[-2:])
    return 1 - unknown[0]


@register_objective("known")
@dataclass(frozen=True)
class Known(Measured, Determining):
    r"""Some pixels are known: :math:`\log f = -\frac1{2s^2} \sum_p m_p \sum_c (y_{pc} - x_{pc})^2`.

    It takes the picture y. What is transparent there is unknown: m is its opacity, 1 everywhere if it has none.

    Args:
        spread: s > 0, the standard deviation of the error of a pixel, in units of its range.
        given_picture: y, shape ``(3, H, W)``, or ``(4, H, W)`` with m last; as `given` makes it.

    >>> import torch
    >>> y = torch.tensor([1.0, 0.0, 0.0, 1.0]).reshape(4, 1, 1)
    >>> Known().given(y)(torch.zeros(1, 3, 1, 1))
    tensor([-0.5000])
    """

    in_latents: ClassVar[bool] = True

    spread: float = 1.0
    given_picture: Tensor | None = NOTHING

    def given(self, value: Any) -> Self:
        """The objective for a picture. An image that is transparent nowhere is warned of: all of it is known.

        Raises:
            InputError: it is none.
        """
        made = super().given(value)
        y = made.given_picture
        if isinstance(value, Image.Image) and y is not None and (len(y) == 3 or bool((y[3] == 1).all())):
            warn(
                f"the picture of the objective {self.name!r} is opaque all over, so that all of it is known; what is "
                "to be made anew is transparent in it, which a PNG can be and a JPEG cannot"
            )
        return made

    def check_size(self, height: int, width: int) -> None:
        """Refuse pictures of another size than the given one.

        Raises:
            InputError: they are.
        """
        if self.given_picture is not None:
            self.of_size(height, width, tuple(self.given_picture.shape[-2:]))

    def compared(self, x0: Tensor) -> Tensor:
        """``sqrt(m) (y - x0)``, shape ``(B, 3, H, W)``."""
        y = self.target(x0)
        self.check_size(*x0.shape[-2:])
        away = y[:, :3] - x0
        return away if y.shape[1] == 3 else away * y[:, 3:].sqrt()

    def determined(self, x: Tensor) -> Tensor:
        """Keep the part of pictures, or of latents, where the given picture is opaque; 0 elsewhere."""
        y = self.target(x)[0]
        return x if len(y) == 3 else x * cells(y[3] == 1, x)

    def having(self, height: int, width: int) -> Tensor:
        """Return the given picture, with white where it is not opaque.

        Raises:
            InputError: it is of another size, or opaque nowhere.
        """
        y = self.target(torch.zeros(()))[0]
        self.of_size(height, width, tuple(y.shape[-2:]))
        if len(y) == 3:
            return y
        if not (y[3] == 1).any():
            raise InputError(f"the picture of the objective {self.name!r} is opaque nowhere: no pixel of it is known")
        return torch.where(y[3] == 1, y[:3], 1.0)


@register_objective("border")
@dataclass(frozen=True)
class Border(Color, Determining):
    r"""A border of one color: :math:`\log f = -\frac1{2s^2} \sum_{p,c} (x_{pc} - t_c)^2` over its pixels p.

    Args:
        target: t, a color by name, ``"teal"``, or by numbers, ``"#00a0ff"``.
        spread: s > 0, the standard deviation of the error, in units of the range of a pixel.
        share: how wide the border is, as a share of the picture's side, above 0 and below 0.5; a pixel at least.
    """

    in_latents: ClassVar[bool] = True

    target: str = "white"
    spread: float = 1.0
    share: float = 0.125

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < number(self, "share") < 0.5:
            raise RuleError(f"Border: share is above 0 and below 0.5; got {self.share!r}")

    def determined(self, x: Tensor) -> Tensor:
        """Keep the part of pictures, or of latents, that is in the border; 0 elsewhere."""
        height, width = x.shape[-2:]
        rows, columns = (max(1, int(self.share * side)) for side in (height, width))
        inside = torch.zeros_like(x, dtype=torch.bool)
        inside[..., rows : height - rows, columns : width - columns] = True
        return x.masked_fill(inside, 0.0)

    def having(self, height: int, width: int) -> Tensor:
        """A picture of the color."""
        return self.color(torch.zeros(())).expand(3, height, width)

    def __call__(self, x0: Tensor) -> Tensor:
        """``log f`` of pictures ``(B, 3, H, W)``, shape ``(B,)``."""
        return -self.determined(x0 - self.color(x0)).square().flatten(1).sum(1) / (2 * self.spread**2)
