"""The colors of the picture are those of a palette."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import RuleError, shown
from ..fields import SMALLEST, number, set_field
from ..notation.objectives import register_objective
from ..objective import Objective
from .color import rgb

MOST = 64
"""Colors of a palette."""


@register_objective("palette")
@dataclass(frozen=True)
class Palette(Objective):
    r"""Each pixel near one of some colors: :math:`\log f = -\frac1{2s^2} \sum_p \min_k \sum_c (x_{pc} - t_{kc})^2`.

    The sum is over the pixels p and the three channels c; k is the color of the palette that is nearest to the pixel.
    A palette of one color is the objective ``color``. How often each color is taken is free.

    Args:
        colors: t, up to 64 colors with commas between them, by name or by numbers, ``"teal, gold, #ffffff"``.
        spread: s > 0, the standard deviation of the error, in units of the range of a pixel.

    >>> import torch
    >>> Palette("blue, white")(torch.tensor([[0.0, 0.0, 1.0], [0.9, 1.0, 1.0]]).T.reshape(1, 3, 1, 2))
    tensor([-0.0050])
    """

    colors: str
    spread: float = 1.0

    def __post_init__(self) -> None:
        if number(self, "spread") < SMALLEST:
            raise RuleError(f"Palette: spread must be above 0, {SMALLEST:g} at least; got {self.spread!r}")
        named = self.colors.split(",") if isinstance(self.colors, str) else []
        found = [rgb(one.strip()) for one in named]
        if unknown := next((one.strip() for one in named if one.strip() and rgb(one.strip()) is None), None):
            raise RuleError(f"Palette: unknown color {shown(unknown)}; a color is such as 'teal' or '#00a0ff'")
        if not 0 < len(found) <= MOST or None in found:
            raise RuleError(
                f"Palette: colors are 1 to {MOST} with commas between them, such as 'teal, gold, #ffffff'; got "
                f"{shown(self.colors)}"
            )
        set_field(self, "_rgb", tuple(found))

    def __call__(self, x0: Tensor) -> Tensor:
        """``log f`` of pictures ``(B, 3, H, W)``, shape ``(B,)``."""
        colors = torch.tensor(self._rgb, dtype=x0.dtype).to(x0.device, non_blocking=True)  # type: ignore[attr-defined]
        away = torch.stack([(x0 - one.reshape(3, 1, 1)).square().sum(1) for one in colors])
        return -away.amin(0).flatten(1).sum(1) / (2 * self.spread**2)
