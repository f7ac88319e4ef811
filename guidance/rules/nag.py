"""Normalized attention guidance (Chen et al. 2025)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import RuleError
from ..fields import SMALLEST, block_names, number
from ..notation.registry import register
from ..own_pass import OwnPass
from ..prediction import wide
from ..query import PromptEdit

CHEN_2025 = """@inproceedings{chen2025normalized,
  title     = {Normalized Attention Guidance: Universal Negative Guidance for Diffusion Models},
  author    = {Chen, Dar-Yen and Bandyopadhyay, Hmrishav and Zou, Kai and Song, Yi-Zhe},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2025},
  note      = {arXiv:2505.21179}
}"""


def normalized(positive: Tensor, negative: Tensor, values: tuple[float, ...], axes: tuple[int, ...]) -> Tensor:
    """NAG's attention output from those for the prompt and for the negative, given (scale, tau, alpha).

    Args:
        positive: Z+.
        negative: Z-, of the same shape.
        values: the rule's numbers.
        axes: of one token's numbers.
    """
    scale, tau, alpha = values
    kind = wide(positive.dtype)
    z, away = positive.to(kind), negative.to(kind)
    further = z + (scale - 1) * (z - away)
    sizes = [one.abs().sum(axes, keepdim=True) for one in (z, further)]
    # min(R, tau)/R of R = |further|/|z|, where |further| may be 0.
    factor = (tau * sizes[0] / sizes[1].clamp(min=torch.finfo(kind).tiny)).clamp(max=1)
    return (alpha * further * factor + (1 - alpha) * z).to(positive.dtype)


@register("nag", references=(CHEN_2025,), example="nag(3)")
@dataclass(frozen=True)
class NAG(OwnPass):
    r"""Normalized attention guidance: a negative prompt inside the attention of the prompt's own pass.

    In each attention to a text, with the output :math:`Z_+` for the prompt and :math:`Z_-` for the negative prompt of
    the same queries, of each token of the picture

    .. math::
        \tilde Z = Z_+ + (s - 1)(Z_+ - Z_-),\qquad
        Z = \alpha \tilde Z \min(1,\ \tau \lVert Z_+\rVert_1 / \lVert\tilde Z\rVert_1) + (1 - \alpha) Z_+

    It works where no unconditional prediction can be had, in few steps and in guidance-distilled networks, and every
    rule beside it reads the prompt's answer with it: ``nag(3) | cfg(4)``.

    Args:
        scale: s, any number up to 1e6 in size; 1 is off, as in `CFG`. The authors' code calls it ``nag_scale``, their
            paper has :math:`\phi = s - 1`.
        tau: :math:`\tau > 0`, how many times its size the output may grow; at 1e6 without a bound.
        alpha: :math:`\alpha` in [0, 1], the share of the guided output; 0 is off.
        blocks: names of the blocks in which it guides, as `guidestack doctor` prints them; None for all.

    Queries: none of its own, hence 1 evaluation a step. In a network with cross-attention only that attention is made
    twice; in one whose text stands beside the picture (Stable Diffusion 3, Flux) the pass has twice the rows.

    State: none. Space: none; what it changes is within the network.

    References:
        Chen, Bandyopadhyay, Zou & Song, "Normalized Attention Guidance: Universal Negative Guidance for Diffusion
        Models", arXiv:2505.21179. The norm is the L1 norm of the paper; the authors' code for Flux takes L2.

    >>> from guidestack import NAG, CFG
    >>> print(NAG(3) | CFG(4)), len(NAG(3).asks())
    nag(3) | cfg(4)
    (None, 0)
    """

    neutral_values: ClassVar[Mapping[str, Any] | None] = {"scale": 1.0}

    scale: float
    tau: float = 2.5
    alpha: float = 0.25
    blocks: str | None = None

    def __post_init__(self) -> None:
        number(self, "scale")
        if number(self, "tau", 0.0) < SMALLEST:
            raise RuleError(f"NAG: tau must be above 0, {SMALLEST:g} at least; got {self.tau!r}")
        number(self, "alpha", 0.0, 1.0)
        block_names(self, "blocks")

    @property
    def edit(self) -> PromptEdit | None:
        """The edit that puts the negative prompt into the attention; None where `scale` or `alpha` turns it off."""
        if self.scale == 1 or self.alpha == 0:
            return None
        return PromptEdit("nag", (self.scale, self.tau, self.alpha), self.blocks or "", "negative")
