"""Sliding-mode control of classifier-free guidance, SMC-CFG (Wang et al. 2026)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from ..contrasting import Contrasting
from ..fields import choice, number
from ..notation.registry import register
from ..per_sample import norm, ratio
from ..prediction import Prediction
from ..query import NEGATIVE, Query
from ..step import Estimate, State, Step
from .cfg import extrapolated

WANG_2026 = """@inproceedings{wang2026cfgctrl,
  title     = {{CFG-Ctrl}: Control-Based Classifier-Free Diffusion Guidance},
  author    = {Wang, Hanyang and Liu, Yiyang and Chi, Jiawei and Liu, Fangfu and Xue, Ran and Duan, Yueqi},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year      = {2026},
  note      = {arXiv:2603.03281}
}"""


class Corrected(NamedTuple):
    """What SMC-CFG remembers: the corrected difference of the evaluation before, shape ``(B, ...)``."""

    error: Tensor


@register(
    "smc_cfg",
    references=(WANG_2026,),
    example=("smc_cfg(3, gain=0.05)", "smc_cfg(3, gain=0.5, switching='unit')"),
)
@dataclass(frozen=True)
class SMCCFG(Contrasting):
    r"""SMC-CFG: classifier-free guidance whose difference is driven towards a sliding line on which it decays.

    On velocities, with :math:`e = v_c - v_u` and the corrected :math:`\hat e` of the evaluation before (at the first
    one e itself):

    .. math:: z = (e - \hat e_{prev}) + \lambda\, \hat e_{prev},\qquad \hat e = e - k\,\mathrm{sign}(z),\qquad
              \tilde v = v_u + s\, \hat e

    On an estimate that earlier rules already improved it adds :math:`s\,\hat e - e`.

    Args:
        scale: s, any number up to 1e6 in size. 1 is no guidance where `gain` is 0.
        decay: :math:`\lambda` >= 0.
        gain: k >= 0, the size of the correction; 0 is `CFG`. In units of a velocity's elements with ``"sign"``.
        switching: ``"sign"``, that of each element, as the authors have it; ``"unit"``: :math:`z/\lVert z\rVert`, the
            same direction for the whole sample, as a widely used node has it. The gain is then a norm.
        against: the query that :math:`v_u` answers, as in `CFG`.

    Queries: "positive" and `against`, hence 2 evaluations a step; none of its own at scale 1 and gain 0.

    State: the corrected difference, ``(B, ...)`` in float32 or better; none before the first evaluation. Space:
    velocity, as the paper has it. In flow models an element of a velocity is about 1; a network that emits noise wants
    a smaller gain, since its velocity is divided by little where there is much noise.

    References:
        Wang, Liu, Chi, Liu, Xue & Duan, "CFG-Ctrl: Control-Based Classifier-Free Diffusion Guidance", arXiv:2603.03281,
        and its authors' code, which has decay 5 and gain 0.2 for all models.

    >>> from guidestack import SMCCFG
    >>> print(SMCCFG(7.5))
    smc_cfg(7.5)
    """

    space: ClassVar[Any] = "velocity"
    neutral_values: ClassVar[Mapping[str, Any] | None] = {"scale": 1.0, "gain": 0.0}

    scale: float
    decay: float = 5.0
    gain: float = 0.2
    switching: str = "sign"
    against: Query | str = NEGATIVE

    def __post_init__(self) -> None:
        super().__post_init__()
        number(self, "decay", 0.0)
        number(self, "gain", 0.0)
        choice(self, "switching", ("sign", "unit"))

    def guided(
        self, estimate: Estimate, c: Prediction, u: Prediction, step: Step, state: State
    ) -> tuple[Estimate, State]:
        """Correct the difference of velocities towards the line on which it decays, and guide by `scale` along it."""
        if self.gain == 0:
            return extrapolated(estimate, c, u, self.scale), state
        error = c.minus(u, "velocity")
        before = state.error if isinstance(state, Corrected) else error
        surface = error.add(before, alpha=self.decay - 1)
        push = surface.sign_() if self.switching == "sign" else ratio(surface, norm(surface))
        corrected = error.add(push, alpha=-self.gain)
        return estimate.plus("velocity", corrected.mul(self.scale).sub_(error), 1.0), Corrected(corrected)
