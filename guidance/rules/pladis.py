"""PLADIS: cross-attention beyond softmax, towards sparse weights (Kim & Sim 2025)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..fields import block_names, number
from ..notation.registry import register
from ..own_pass import OwnPass
from ..query import PromptEdit

KIM_2025 = """@misc{kim2025pladis,
  title  = {{PLADIS}: Pushing the Limits of Attention in Diffusion Models at Inference Time by Leveraging Sparsity},
  author = {Kim, Kwanyoung and Sim, Byeongsu},
  year   = {2025},
  note   = {arXiv:2503.07677}
}"""
LOW = -1e4
"""For scores of what may not be looked at: as good as minus infinity, with which no sum is NaN."""


def entmax(scores: Tensor) -> Tensor:
    """The 1.5-entmax of scores along their last axis: as a softmax, and exactly 0 for low scores. Exact, by sorting."""
    # p = [z/2 - t]_+^2 with sum 1 (Peters, Niculae & Martins 2019, Algorithm 2).
    z = (scores - scores.amax(-1, keepdim=True)).clamp(min=LOW) / 2
    ranked = z.sort(-1, descending=True).values
    count = torch.arange(1, z.shape[-1] + 1, device=z.device, dtype=z.dtype)
    mean, square = ranked.cumsum(-1) / count, (ranked**2).cumsum(-1) / count
    threshold = mean - ((1 - count * (square - mean**2)) / count).clamp(min=0).sqrt()
    support = (threshold <= ranked).sum(-1, keepdim=True)
    return (z - threshold.gather(-1, support - 1)).clamp(min=0) ** 2


def beyond(scores: Tensor, values: tuple[float, ...]) -> Tensor:
    """PLADIS's attention weights from scores along their last axis, given (scale,)."""
    dense = scores.softmax(-1)
    return dense + values[0] * (entmax(scores) - dense)


@register("pladis", references=(KIM_2025,), example="pladis(2)")
@dataclass(frozen=True)
class PLADIS(OwnPass):
    r"""PLADIS: attention to the prompt extrapolated from dense weights to sparse ones.

    .. math:: A = \lambda\, \mathrm{entmax}_{1.5}(S) + (1 - \lambda)\, \mathrm{softmax}(S)

    for the scores S of each attention to the prompt's text. It needs no negative prompt.

    Args:
        scale: :math:`\lambda`, any number up to 1e6 in size; 0 is off, 1 the sparse weights, above 1 beyond them. The
            paper takes 2.
        blocks: names of the blocks in which it changes the weights, as `guidestack doctor` prints them; None for all.

    Queries: none of its own, hence 1 evaluation a step. The weights are made in memory, one for each token of the
    picture, of the text and for each head: more than PyTorch's own attention needs.

    State: none. Space: none; what it changes is within the network. Networks with cross-attention only.

    References:
        Kim & Sim, "PLADIS: Pushing the Limits of Attention in Diffusion Models at Inference Time by Leveraging
        Sparsity", arXiv:2503.07677. Here the prompt's own pass has it, and not the contrast's.

    >>> from guidestack import PLADIS
    >>> PLADIS(2).own_pass[0].text, PLADIS(0).own_pass
    ('', ())
    """

    neutral_values: ClassVar[Mapping[str, Any] | None] = {"scale": 0.0}

    scale: float = 2.0
    blocks: str | None = None

    def __post_init__(self) -> None:
        number(self, "scale")
        block_names(self, "blocks")

    @property
    def edit(self) -> PromptEdit | None:
        """The edit that makes the attention weights sparser; None where `scale` is 0."""
        return None if self.scale == 0 else PromptEdit("pladis", (self.scale,), self.blocks or "")
