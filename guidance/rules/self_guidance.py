"""Self-guidance by a noisier time (Li et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass

from ..edited import Edited
from ..fields import number
from ..notation.registry import register
from ..query import Perturbation

LI_2024 = """@article{li2024self,
  title   = {Self-Guidance: Boosting Flow and Diffusion Generation on Their Own},
  author  = {Li, Tiancheng and Luo, Weijian and Chen, Zhiyang and Ma, Liyuan and Qi, Guo-Jun},
  journal = {arXiv preprint arXiv:2412.05827},
  year    = {2024}
}"""


@register("sg", references=(LI_2024,), example="sg(3)")
@dataclass(frozen=True)
class SelfGuidance(Edited):
    r"""Self-guidance: guide away from the same network's prediction at a time that is noisier than x.

    .. math:: \tilde D = D + s\,\big(D_c(x, t) - D_c(x, t + \Delta)\big)

    Both answers are read at the true level of x: on the network's own output it is the difference of the two outputs.

    Args:
        scale: s, any number up to 1e6 in size; 0 is off.
        shift: the time's shift in steps of 1000, at least 0, where the rule is off. Past the noisiest time that the
            network knows, 999, it is cut.

    Queries: "positive", and "positive" with the edit "shift": 2 evaluations a step, in two network calls; 3 beside
    `CFG`.

    State: none. Space: any.

    References:
        Li et al., "Self-Guidance: Boosting Flow and Diffusion Generation on Their Own", arXiv:2412.05827, section 3;
        scale 3 and shift 10 in its experiments. Its cheaper form, which takes the answer of the step before, is not
        here.

    >>> from guidestack import SelfGuidance
    >>> print(SelfGuidance(3), SelfGuidance(3).contrast)
    sg(3) positive+shift(10)
    """

    scale: float
    shift: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        number(self, "shift", 0.0, 1000.0)

    @property
    def edit(self) -> Perturbation:
        """The edit that shifts the time the network gets by `shift`, towards more noise."""
        return Perturbation("shift", self.shift)

    @property
    def off(self) -> bool:
        """Whether the rule does nothing: whether the scale or the shift is 0."""
        return super().off or self.shift == 0
