"""Smoothed energy guidance (Hong 2024)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..edited import Blocks, Edited, named
from ..errors import RuleError
from ..fields import number, plain, set_field
from ..notation.registry import register
from ..query import Perturbation

HONG_2024 = """@inproceedings{hong2024smoothed,
  title     = {Smoothed Energy Guidance: Guiding Diffusion Models with Reduced Energy Curvature of Attention},
  author    = {Hong, Susung},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2024},
  note      = {arXiv:2408.00760}
}"""


@register("seg", references=(HONG_2024,), example=("seg(3)", "seg(3, sigma=1)"))
@dataclass(frozen=True)
class SEG(Edited):
    r"""Smoothed energy guidance: guide away from the network whose self-attention has blurred queries.

    .. math:: \tilde D = D + s\,(D_c - D_{\sigma})

    To blur the queries over the picture is to blur the scores of attention, which flattens the energy that attention
    descends. The blur is a Gaussian over height and width of the grid of tokens, reflected at its borders, of at most
    the grid's size; at infinity every query is their mean.

    Args:
        scale: s, any number up to 1e6 in size; 0 is off.
        sigma: standard deviation of the blur in tokens, at least 0, where the rule is off; ``inf`` for the mean.
        blocks: names of blocks, as for `PAG`.

    Queries: "positive", and "positive" with the edit "blur": 2 evaluations a step, in two network calls; 3 beside
    `CFG`.

    State: none. Space: any.

    References:
        Hong, "Smoothed Energy Guidance", arXiv:2408.00760, Algorithm 1; settings of its section 5: scale 3, the middle
        block of SDXL, sigma infinite. Its code takes square pictures only.

    >>> from guidestack import SEG
    >>> print(SEG(3), SEG(3, sigma=2).contrast)
    seg(3) positive+blur(2)
    """

    scale: float
    sigma: float = math.inf
    blocks: Blocks = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if plain(self.sigma) == math.inf:
            set_field(self, "sigma", math.inf)
        else:
            try:
                number(self, "sigma", 0.0)
            except RuleError as error:
                raise RuleError(f"{error}; or inf, for the mean") from None

    @property
    def edit(self) -> Perturbation:
        """The edit that blurs the queries of self-attention in `blocks`."""
        return Perturbation("blur", self.sigma, named(self.blocks))

    @property
    def off(self) -> bool:
        """Whether the rule does nothing: whether the scale or the blur is 0."""
        return super().off or self.sigma == 0
