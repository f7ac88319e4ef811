"""Token perturbation guidance (Rajabi et al. 2025)."""

from __future__ import annotations

from dataclasses import dataclass

from ..edited import Blocks, Edited, named
from ..notation.registry import register
from ..query import Perturbation

RAJABI_2025 = """@article{rajabi2025token,
  title   = {Token Perturbation Guidance for Diffusion Models},
  author  = {Rajabi, Javad and Mehraban, Soroush and Sadat, Seyedmorteza and Taati, Babak},
  journal = {arXiv preprint arXiv:2506.10036},
  year    = {2025}
}"""


@register("tpg", references=(RAJABI_2025,), example="tpg(3)")
@dataclass(frozen=True)
class TPG(Edited):
    r"""Token perturbation guidance: guide away from the network whose blocks get shuffled tokens.

    .. math:: \tilde D = D + s\,(D_c - D_{\mathrm{shuffled}})

    To each of the blocks the picture's tokens come in another random order, drawn for each sample; the tokens of a text
    among them stay where they are. Shuffling keeps the statistics of the tokens and breaks what is near what. The
    blocks behind go on in the shuffled order.

    Args:
        scale: s, any number up to 1e6 in size; 0 is off.
        blocks: names of blocks, as for `PAG`. By default all of a UNet's encoder, as in the paper, and the block in the
            middle of a transformer.

    Queries: "positive", and "positive" with the edit "shuffle": 2 evaluations a step, in two network calls; 3 beside
    `CFG`.

    State: none; the orders come from generators keyed by (seed of the sample, step, evaluation), as `guidance.keyed`
    says. Space: any.

    References:
        Rajabi, Mehraban, Sadat & Taati, "Token Perturbation Guidance for Diffusion Models", arXiv:2506.10036, section
        4; scale 3 in its tables. Ports draw one order for the whole batch.

    >>> from guidestack import TPG
    >>> print(TPG(3).contrast, TPG(3, blocks="down.1").contrast)
    positive+shuffle(1) positive+shuffle(1, blocks='down.1')
    """

    scale: float
    blocks: Blocks = None

    @property
    def edit(self) -> Perturbation:
        """The edit that shuffles the picture's tokens before each of `blocks`."""
        return Perturbation("shuffle", blocks=named(self.blocks))
