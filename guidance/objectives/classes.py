"""What objectives by a classifier have in common: the margin and the smooth activations of EluCD."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import RuleError
from ..fields import LARGEST, SMALLEST, number
from ..objective import Objective


class Classified(Objective):
    r"""A class by a classifier's logits: :math:`\log f = f_y - \log \sum_i \exp(m f_i)`.

    A subclass is a frozen dataclass that declares `margin` (m) and `softplus`, and calls `__post_init__`.
    """

    margin: float
    softplus: float

    def __post_init__(self) -> None:
        number(self, "margin", 0)
        if number(self, "softplus", 0, LARGEST) and self.softplus < SMALLEST:
            raise RuleError(f"{type(self).__name__}: softplus is 0 (off) or at least {SMALLEST:g}")

    def of_class(self, logits: Tensor, label: int) -> Tensor:
        """``log f`` of logits ``(B, classes)``, shape ``(B,)``; of ``margin=0`` the logit alone, without a constant."""
        wanted = logits[:, label]
        return wanted - (self.margin * logits).logsumexp(1) if self.margin else wanted


class SmoothReLU(nn.Module):
    r"""ReLU, or in its place :math:`\log(1 + e^{\beta x}) / \beta`, which tends to it and has a gradient everywhere.

    Args:
        beta: of the softplus; 0 for ReLU.
        top: where the activation is cut, 6 of a ReLU6, by the same function mirrored; infinite for none.
    """

    def __init__(self, beta: float = 0.0, top: float = torch.inf) -> None:
        super().__init__()
        self.beta, self.top = beta, top

    def forward(self, x: Tensor) -> Tensor:
        """The activations, shaped like `x`."""
        if not self.beta:
            return x.clamp(0, self.top)
        low = functional.softplus(x, beta=self.beta)
        return low if self.top == torch.inf else low - functional.softplus(x - self.top, beta=self.beta)


def smooth(network: nn.Module, beta: float) -> nn.Module:
    """Give a network softplus in place of each ReLU and ReLU6, at any depth; its weights stay as they are.

    Args:
        network: changed in place, and returned.
        beta: of the softplus; 0 for the activations that it was trained with.
    """
    for name, part in network.named_children():
        if isinstance(part, nn.ReLU | nn.ReLU6):
            setattr(network, name, SmoothReLU(beta, 6.0 if isinstance(part, nn.ReLU6) else torch.inf))
        elif isinstance(part, SmoothReLU):
            part.beta = beta
        else:
            smooth(part, beta)
    return network
