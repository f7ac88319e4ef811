"""Perturbed-attention guidance (Ahn et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass

from ..edited import Blocks, Edited, named
from ..notation.registry import register
from ..query import Perturbation

AHN_2024 = """@inproceedings{ahn2024self,
  title     = {Self-Rectifying Diffusion Sampling with Perturbed-Attention Guidance},
  author    = {Ahn, Donghoon and Cho, Hyoungwon and Min, Jaewon and Jang, Wooseok and Kim, Jungwoo and Kim, SeonHwa
               and Park, Hyun Hee and Jin, Kyong Hwan and Kim, Seungryong},
  booktitle = {European Conference on Computer Vision},
  year      = {2024},
  note      = {arXiv:2403.17377}
}"""


@register("pag", references=(AHN_2024,), example="pag(3)")
@dataclass(frozen=True)
class PAG(Edited):
    r"""Perturbed-attention guidance: guide away from the network whose tokens attend to themselves alone.

    .. math:: \tilde D = D + s\,(D_c - D_{\mathrm{id}})

    In the self-attention of some blocks each token of the picture attends to itself, so that only its value is left;
    where text and picture share one attention, to the text as well. Works beside `CFG` and without it, also on models
    that have no condition at all.

    Args:
        scale: s, any number up to 1e6 in size; 0 is off.
        blocks: names of blocks, ``"mid"``, ``"down.2"``, ``"7,8"``, a tuple of them or a number; `guidestack doctor`
            prints them. By default the block in the middle: ``mid`` of a UNet, where the paper has it.

    Queries: "positive", and "positive" with the edit "identity": 2 evaluations a step, in two network calls; 3 beside
    `CFG`.

    State: none. Space: any.

    References:
        Ahn et al., "Self-Rectifying Diffusion Sampling with Perturbed-Attention Guidance", arXiv:2403.17377, eq. 18 and
        section 4.2. Their scale and that of diffusers' pipelines, ``pag_scale``, count as s does.

    >>> from guidestack import PAG
    >>> print(PAG(3, blocks=("mid", "up.0")), PAG(3).contrast)
    pag(3, blocks='mid,up.0') positive+identity(1)
    """

    scale: float
    blocks: Blocks = None

    @property
    def edit(self) -> Perturbation:
        """The edit by which each token of the picture attends to itself in `blocks`."""
        return Perturbation("identity", blocks=named(self.blocks))
