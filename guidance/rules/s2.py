"""Stochastic self-guidance by dropped blocks (Chen et al. 2025)."""

from __future__ import annotations

from dataclasses import dataclass

from ..edited import Blocks, Edited, named
from ..fields import SMALLEST, number
from ..notation.registry import register
from ..query import Perturbation

CHEN_2025 = """@article{chen2025s2,
  title   = {S^2-Guidance: Stochastic Self Guidance for Training-Free Enhancement of Diffusion Models},
  author  = {Chen, Chubin and Zhu, Jiashu and Feng, Xiaokun and Huang, Nisha and Wu, Meiqi and Mao, Fangyuan and Wu,
             Jiahong and Chu, Xiangxiang and Li, Xiu},
  journal = {arXiv preprint arXiv:2508.12880},
  year    = {2025}
}"""


@register("s2", references=(CHEN_2025,), example="s2(0.25)")
@dataclass(frozen=True)
class S2(Edited):
    r"""Stochastic self-guidance: guide away from the network without random blocks, drawn at each evaluation.

    .. math:: \tilde D = D + s\,(D_c - D_m),\qquad m \text{ blocks left out, drawn anew for each sample}

    Args:
        scale: s, any number up to 1e6 in size; 0 is off.
        share: how many of the blocks are left out, in (0, 1], one at least.
        blocks: names of the blocks that are drawn from, as for `PAG`; by default all.

    Queries: "positive", and "positive" with the edit "drop": 2 evaluations a step, in two network calls; 3 beside
    `CFG`. Blocks that a batch leaves out for some samples only are computed for all.

    State: none; the blocks come from generators keyed by (seed of the sample, step, evaluation), as `guidance.keyed`
    says. Space: any.

    References:
        Chen et al., "S^2-Guidance", arXiv:2508.12880. Its code is not public. Ports subtract a share w = 0.25 of the
        weak answer from that of classifier-free guidance and bring the result back to the norm that it had: beside the
        norm that is ``scale = w / (1 - w)`` here, with the guided answer in place of D_c.

    >>> from guidestack import S2
    >>> print(S2(0.25), S2(0.25, share=0.1).contrast)
    s2(0.25) positive+drop(0.1)
    """

    scale: float
    share: float = 0.1
    blocks: Blocks = None

    def __post_init__(self) -> None:
        super().__post_init__()
        number(self, "share", SMALLEST, 1.0)

    @property
    def edit(self) -> Perturbation:
        """The edit that leaves out a random share of `blocks`, drawn for each sample."""
        return Perturbation("drop", self.share, named(self.blocks))
