"""Skip-layer guidance (Stable Diffusion 3.5), spatio-temporal skip guidance (Hyung et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass

from ..edited import Blocks, Edited, named
from ..errors import RuleError
from ..notation.registry import register
from ..query import Perturbation

HYUNG_2024 = """@article{hyung2024spatiotemporal,
  title   = {Spatiotemporal Skip Guidance for Enhanced Video Diffusion Sampling},
  author  = {Hyung, Junha and Kim, Kinam and Hong, Susung and Kim, Min-Jung and Choo, Jaegul},
  journal = {arXiv preprint arXiv:2411.18664},
  year    = {2024}
}"""


@register("slg", references=(HYUNG_2024,), example="slg(2.8, blocks='middle')")
@dataclass(frozen=True)
class SLG(Edited):
    r"""Skip-layer guidance: guide away from the network without some of its blocks.

    .. math:: \tilde D = D + s\,(D_c - D_{\mathrm{skip}})

    Spatio-temporal skip guidance (STG) of video models is the same, block by block (its form "STG-R"); `PAG` in the
    same blocks is its form "STG-A".

    Args:
        scale: s, any number up to 1e6 in size; 0 is off.
        blocks: names of the blocks that are left out, ``"7,8,9"``, a tuple of them or a number; `guidestack doctor`
            prints them.

    Queries: "positive", and "positive" with the edit "skip": 2 evaluations a step, in two network calls; 3 beside
    `CFG`. The second is cheaper by the blocks that it leaves out.

    State: none. Space: any.

    References:
        Stability AI's inference code of Stable Diffusion 3.5 has it for its medium model, with scale 2.5, blocks 7, 8
        and 9 and the steps between 1% and 20%; diffusers' ``skip_layer_guidance_scale`` counts as s does. Hyung et al.,
        arXiv:2411.18664, for video.

    >>> from guidestack import SLG
    >>> print(SLG(2.8, blocks=(7, 8, 9)))
    slg(2.8, '7,8,9')
    """

    scale: float
    blocks: Blocks

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.blocks is None:
            raise RuleError("SLG: blocks names those that are left out, such as '7,8,9'; guidestack doctor prints them")

    @property
    def edit(self) -> Perturbation:
        """The edit that leaves out `blocks` of the network."""
        return Perturbation("skip", blocks=named(self.blocks))
