"""Known pixels: inpainting and outpainting."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..notation.objectives import register_objective
from .picture import NOTHING, Measured


@register_objective("known")
@dataclass(frozen=True)
class Known(Measured):
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

    spread: float = 1.0
    given_picture: Tensor | None = NOTHING

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
