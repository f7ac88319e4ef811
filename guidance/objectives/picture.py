"""Pictures that the user gives to objectives, and the base class of objectives that compare with one."""

from __future__ import annotations

from dataclasses import field, replace
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import InputError, RuleError, shown
from ..fields import SMALLEST, number
from ..objective import Objective

NOTHING: Any = field(default=None, repr=False, compare=False)
"""The default of a picture that is given later, in the declaration of an objective."""


def picture(name: str, value: Any) -> Tensor:
    """A picture as a tensor in float32 with values in [0, 1], shape ``(C, H, W)``; C is 4 where it has transparency.

    Args:
        name: of the objective, for messages.
        value: a PIL image, or such a tensor with 3 or 4 channels.

    Raises:
        InputError: it is something else.
    """
    if isinstance(value, Image.Image):
        transparent = "A" in value.getbands() or "transparency" in value.info
        numbers = np.asarray(value.convert("RGBA" if transparent else "RGB"), dtype=np.float32) / 255
        return torch.from_numpy(numbers).permute(2, 0, 1)
    if isinstance(value, Tensor) and value.ndim == 3 and value.shape[0] in (3, 4) and value.is_floating_point():
        return value.detach().float()
    got = f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else shown(value)
    raise InputError(
        f"the objective {name!r} takes a picture: a PIL image, or a floating-point tensor of shape (3, H, W) "
        f"with values in [0, 1]; got {got}"
    )


class Measured(Objective):
    r"""A Gaussian likelihood of measurements: :math:`\log f = -\|y - A x_0\|^2 / (2 s^2)`.

    A subclass is a frozen dataclass that declares `spread` (s) and `given_picture`, and implements `compared`.
    """

    takes = "a picture"
    spread: float
    given_picture: Tensor | None

    def __post_init__(self) -> None:
        if number(self, "spread", 0) < SMALLEST:
            raise RuleError(
                f"{type(self).__name__}: spread must be above 0, {SMALLEST:g} at least; got {self.spread!r}"
            )

    @property
    def name(self) -> str:
        """What messages call the objective."""
        return type(self).__name__.lower()

    def given(self, value: Any) -> Self:
        """The objective for a picture.

        Raises:
            InputError: it is none.
        """
        return replace(self, given_picture=picture(self.name, value))  # type: ignore[type-var]

    def target(self, like: Tensor) -> Tensor:
        """The picture where `like` is, in its type, with a batch axis.

        Raises:
            InputError: none was given.
        """
        if self.given_picture is None:
            raise InputError(f"the objective {self.name!r} was given no picture")
        return self.given_picture.to(like.device, like.dtype, non_blocking=True)[None]

    def compared(self, x0: Tensor) -> Tensor:
        """``y - A x0`` of pictures ``(B, 3, H, W)``, shape ``(B, ...)``."""
        raise NotImplementedError

    def __call__(self, x0: Tensor) -> Tensor:
        """``log f`` of pictures ``(B, 3, H, W)``, shape ``(B,)``."""
        return -self.compared(x0).square().flatten(1).sum(1) / (2 * self.spread**2)

    def of_size(self, height: int, width: int, own: tuple[int, ...]) -> None:
        """Refuse pictures of a size that the given one does not fit.

        Args:
            height: of the pictures that the run makes, in pixels.
            width: likewise.
            own: height and width of those that the given picture is for.

        Raises:
            InputError: they are others.
        """
        if (height, width) != own:
            raise InputError(
                f"the picture of the objective {self.name!r} is for {own[0]}x{own[1]} pixels, and the run makes "
                f"{height}x{width} (height x width); give one that fits, or make pictures of that size"
            )
