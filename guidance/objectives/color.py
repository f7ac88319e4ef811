"""The mean color of the picture."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from PIL import ImageColor
from torch import Tensor

from ..errors import RuleError, shown
from ..fields import SMALLEST, number, set_field
from ..notation.objectives import register_objective
from ..objective import Objective


def rgb(text: object) -> tuple[float, float, float] | None:
    """The three numbers of a color in [0, 1], of a text that names one; None of any other."""
    try:
        red, green, blue = ImageColor.getrgb(str(text))[:3]
    except ValueError:
        return None
    return red / 255, green / 255, blue / 255


@register_objective("color")
@dataclass(frozen=True)
class Color(Objective):
    r"""The whole picture near one color: :math:`\log f = -\frac1{2s^2} \sum_{p,c} (x_{pc} - t_c)^2`.

    The sum is over the pixels p and the three channels c: every pixel is a measurement of the color with a Gaussian
    error, as in all objectives here.

    Args:
        target: t, a color by name, ``"teal"``, or by numbers, ``"#00a0ff"``.
        spread: s > 0, the standard deviation of the error, in units of the range of a pixel.

    >>> import torch
    >>> Color("blue")(torch.tensor([0.0, 0.0, 1.0]).reshape(1, 3, 1, 1))
    tensor([-0.])
    """

    target: str
    spread: float = 1.0

    def __post_init__(self) -> None:
        if number(self, "spread") < SMALLEST:
            raise RuleError(f"Color: spread must be above 0, {SMALLEST:g} at least; got {self.spread!r}")
        if (found := rgb(self.target)) is None:
            raise RuleError(f"Color: target is a color such as 'teal' or '#00a0ff'; got {shown(self.target)}")
        set_field(self, "_rgb", found)

    def color(self, like: Tensor) -> Tensor:
        """The color where `like` is, in its type, shape ``(3, 1, 1)``."""
        target = torch.tensor(self._rgb, dtype=like.dtype)  # type: ignore[attr-defined]
        return target.to(like.device, non_blocking=True).reshape(3, 1, 1)

    def __call__(self, x0: Tensor) -> Tensor:
        """``log f`` of pictures ``(B, 3, H, W)``, shape ``(B,)``."""
        return -(x0 - self.color(x0)).square().flatten(1).sum(1) / (2 * self.spread**2)


def _named(name: str) -> type[Color]:
    @register_objective(name)
    @dataclass(frozen=True)
    class Named(Color):
        __doc__ = f"The whole picture {name}: ``color({name!r})``."
        target: str = name

    Named.__name__ = Named.__qualname__ = name.title()
    return Named


Red, Green, Blue = map(_named, ("red", "green", "blue"))
