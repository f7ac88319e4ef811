"""Linear measurements of the picture with their adjoints: blur, lower resolution, gray values, random projections."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import InputError, RuleError
from ..fields import number, whole
from ..keyed import keyed
from ..notation.objectives import register_objective
from ..objective import Determining
from .picture import NOTHING, Measured, picture


class Linear(Measured):
    """A linear measurement A of pictures. A subclass implements `measure`; `adjoint` follows from it."""

    def measure(self, x0: Tensor) -> Tensor:
        """``A x0`` of pictures ``(B, 3, H, W)``, shape ``(B, ...)``."""
        raise NotImplementedError

    def adjoint(self, y: Tensor, height: int, width: int) -> Tensor:
        r""":math:`A^T y`, shape ``(B, 3, H, W)``, of measurements `y` of pictures of that size.

        Raises:
            InputError: `measure` is not differentiable, and so has no adjoint that follows from it.
        """
        with torch.enable_grad():
            zero = y.new_zeros(len(y), 3, height, width).requires_grad_()
            measured = self.measure(zero)
            if not measured.requires_grad:
                raise InputError(
                    f"the measurement {self.name!r} has no adjoint: what `measure` returns does not depend on x0 by "
                    "differentiable operations of torch; write it in these, or write `adjoint` too"
                )
            (found,) = torch.autograd.grad(measured, zero, y)
        return found

    def shape(self, height: int, width: int) -> tuple[int, ...] | None:
        """The shape of a picture's measurements; None, by default, where only measuring tells it."""
        del height, width
        return None

    def check_size(self, height: int, width: int) -> None:
        """Refuse pictures of a size that the given measurements do not fit, as far as `shape` knows.

        Raises:
            InputError: they do not fit.
        """
        if (shape := self.shape(height, width)) is not None and self.given_picture is not None:
            self._fit(height, width, shape, tuple(self.given_picture.shape))

    def _fit(self, height: int, width: int, shape: tuple[int, ...], given: tuple[int, ...]) -> None:
        if shape != given:
            raise InputError(
                f"the measurements of the objective {self.name!r} have shape {given}, and pictures of the run, "
                f"{height}x{width} pixels (height x width), have {shape}; give ones that fit"
            )

    def compared(self, x0: Tensor) -> Tensor:
        """``y - A x0``."""
        measured, y = self.measure(x0), self.target(x0)
        height, width = x0.shape[-2:]
        self._fit(height, width, tuple(measured.shape[1:]), tuple(y.shape[1:]))
        return y - measured

    def given(self, value: Any) -> Self:
        """The objective for a picture of measurements, without its transparency.

        Raises:
            InputError: it is no picture.
        """
        return replace(self, given_picture=picture(self.name, value)[:3])  # type: ignore[type-var]


@register_objective("blur")
@dataclass(frozen=True)
class Blur(Linear):
    r"""The picture, blurred, is the one given: A is a Gaussian blur with reflected borders; deblurring.

    Args:
        width: the standard deviation of the blur in pixels, above 0 and at most 100.
        spread: s > 0, the standard deviation of the error of a pixel, in units of its range.
        given_picture: y, the blurred picture, shape ``(3, H, W)``; as `given` makes it.
    """

    width: float = 2.0
    spread: float = 1.0
    given_picture: Tensor | None = NOTHING

    def __post_init__(self) -> None:
        super().__post_init__()
        if number(self, "width", 0, 100) == 0:
            raise RuleError("Blur: width must be above 0, got 0")

    def shape(self, height: int, width: int) -> tuple[int, ...]:
        """The shape of a blurred picture: its own."""
        return 3, height, width

    def measure(self, x0: Tensor) -> Tensor:
        """The blurred pictures."""
        reach = min(int(3 * self.width + 0.5) or 1, min(x0.shape[-2:]) - 1)
        places = torch.arange(-reach, reach + 1, dtype=torch.float32)
        kernel = (-places.square() / (2 * self.width**2)).exp()
        kernel = (kernel / kernel.sum()).to(x0.device, x0.dtype, non_blocking=True)
        channels = x0.shape[1]
        padded = functional.pad(x0, (reach,) * 4, mode="reflect")
        rows = functional.conv2d(padded, kernel.reshape(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)
        return functional.conv2d(rows, kernel.reshape(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)


@register_objective("superres")
@dataclass(frozen=True)
class SuperResolution(Linear, Determining):
    r"""The picture, made smaller, is the one given: A averages squares of pixels; super-resolution.

    Args:
        factor: the side of a square in pixels, at least 1.
        spread: s > 0, the standard deviation of the error of a pixel, in units of its range.
        given_picture: y, the small picture, shape ``(3, H/factor, W/factor)``; as `given` makes it.
    """

    factor: int = 4
    spread: float = 1.0
    given_picture: Tensor | None = NOTHING

    def __post_init__(self) -> None:
        super().__post_init__()
        whole(self, "factor", 1)

    @property
    def name(self) -> str:
        """What messages call the objective."""
        return "superres"

    def shape(self, height: int, width: int) -> tuple[int, ...]:
        """The shape of a smaller picture."""
        return 3, height // self.factor, width // self.factor

    def measure(self, x0: Tensor) -> Tensor:
        """The smaller pictures."""
        return functional.avg_pool2d(x0, self.factor)

    def determined(self, x: Tensor) -> Tensor:
        """The pictures, each square in its mean; 0 where sides that `factor` does not divide leave pixels over."""
        height, width = x.shape[-2:]
        large = self._enlarged(self.measure(x))
        return functional.pad(large, (0, width - large.shape[-1], 0, height - large.shape[-2]))

    def having(self, height: int, width: int) -> Tensor:
        """The small picture with each of its pixels as a square.

        Raises:
            InputError: it is for pictures of another size.
        """
        self.check_size(height, width)
        large = self._enlarged(self.target(torch.zeros(())))
        right, lower = width - large.shape[-1], height - large.shape[-2]
        return functional.pad(large, (0, right, 0, lower), mode="replicate")[0]

    def _enlarged(self, small: Tensor) -> Tensor:
        return small.repeat_interleave(self.factor, -1).repeat_interleave(self.factor, -2)


@register_objective("gray")
@dataclass(frozen=True)
class Gray(Linear, Determining):
    r"""The gray values of the picture are known: A is a weighted mean of its channels; colorization.

    Args:
        red: the weight of the channel, from 0 to 1e6. Weights are divided by their sum: the default is the mean of the
            three, which is Song et al.'s; ``gray(0.299, 0.587, 0.114)`` is the luma of video and of PIL.
        green: likewise.
        blue: likewise. One of the three is above 0.
        spread: s > 0, the standard deviation of the error of a value, in units of the range of a pixel.
        given_picture: y, shape ``(1, H, W)``, as `measure` makes it of a picture. `given` takes a picture, in gray or
            in color, and measures it.
    """

    red: float = 1.0
    green: float = 1.0
    blue: float = 1.0
    spread: float = 1.0
    given_picture: Tensor | None = NOTHING

    def __post_init__(self) -> None:
        super().__post_init__()
        weights = [number(self, name, 0) for name in ("red", "green", "blue")]
        if not any(weights):
            raise RuleError("Gray: one of the weights red, green and blue must be above 0")

    def shape(self, height: int, width: int) -> tuple[int, ...]:
        """The shape of the gray values."""
        return 1, height, width

    def measure(self, x0: Tensor) -> Tensor:
        """The gray values, shape ``(B, 1, H, W)``."""
        return (self._weights(x0) * x0).sum(1, keepdim=True)

    def given(self, value: Any) -> Self:
        """The objective for the gray values of a picture, without its transparency.

        Raises:
            InputError: it is no picture.
        """
        return replace(self, given_picture=self.measure(picture(self.name, value)[None, :3])[0])

    def determined(self, x: Tensor) -> Tensor:
        r""":math:`A^+ A x`, which is along the weights w in each pixel: :math:`w\,(w \cdot x) / \|w\|^2`."""
        weights = self._weights(x)
        return weights * self.measure(x) / weights.square().sum()

    def having(self, height: int, width: int) -> Tensor:
        """The gray picture.

        Raises:
            InputError: it is of another size.
        """
        self.check_size(height, width)
        return self.target(torch.zeros(()))[0].expand(3, -1, -1)

    def _weights(self, like: Tensor) -> Tensor:
        total = self.red + self.green + self.blue
        weights = torch.tensor([one / total for one in (self.red, self.green, self.blue)], dtype=like.dtype)
        return weights.to(like.device, non_blocking=True).reshape(3, 1, 1)


@register_objective("projection")
@dataclass(frozen=True)
class Projection(Linear):
    r"""Some random combinations of the picture's pixels are known: compressed sensing.

    A changes the signs of the pixels at random, takes the Fourier transform of each channel, with a unitary scale, and
    keeps the real parts of `count` coefficients at random. The same for every sample and every picture of one size.

    Args:
        count: numbers that are measured of each channel, at least 1.
        seed: of the signs and the choice.
        spread: s > 0, the standard deviation of the error of a measurement.
        given_picture: y, shape ``(3, count)``, as `measure` makes it of a picture. `given` takes a picture and measures
            it.
        given_size: height and width of that picture; of others the signs and the choice are others.
    """

    count: int = 256
    seed: int = 0
    spread: float = 1.0
    given_picture: Tensor | None = NOTHING
    given_size: tuple[int, int] | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        whole(self, "count", 1)
        whole(self, "seed", 0)

    def measure(self, x0: Tensor) -> Tensor:
        """The measurements, shape ``(B, 3, count)``.

        Raises:
            InputError: pictures have fewer pixels than are measured.
        """
        pixels = x0.shape[-2] * x0.shape[-1]
        if self.count > pixels:
            raise InputError(f"projection({self.count}) measures {self.count} of the {pixels} pixels of a picture")
        random = keyed(self.seed, "projection", *x0.shape[-2:])
        signs = torch.randint(2, (1, 1, *x0.shape[-2:]), generator=random) * 2 - 1
        chosen = torch.randperm(pixels, generator=random)[: self.count]
        signs, chosen = (one.to(x0.device, non_blocking=True) for one in (signs, chosen))
        found: Tensor = torch.fft.fft2((x0 * signs).float(), norm="ortho").real.flatten(2)[..., chosen]
        return found.to(x0.dtype)

    def given(self, value: Any) -> Self:
        """The objective for the measurements of a picture.

        Raises:
            InputError: it is no picture.
        """
        whole = picture(self.name, value)[:3]
        return replace(self, given_picture=self.measure(whole[None])[0], given_size=(whole.shape[-2], whole.shape[-1]))

    def check_size(self, height: int, width: int) -> None:
        """Refuse pictures of another size than the given one.

        Raises:
            InputError: they are.
        """
        if self.given_size is not None:
            self.of_size(height, width, self.given_size)

    def compared(self, x0: Tensor) -> Tensor:
        """``y - A x0``."""
        self.check_size(*x0.shape[-2:])
        return super().compared(x0)
