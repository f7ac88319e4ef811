"""Angle domain guidance, ADG (Jin et al. 2025)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ..contrasting import Contrasting
from ..fields import number
from ..notation.registry import register
from ..per_sample import dot, norm, ratio
from ..prediction import Prediction
from ..query import NEGATIVE, Query
from ..step import Estimate, State, Step

JIN_2025 = """@inproceedings{jin2025angle,
  title     = {Angle Domain Guidance: Latent Diffusion Requires Rotation Rather Than Extrapolation},
  author    = {Jin, Cheng and Xiao, Zhenyu and Liu, Chutao and Gu, Yuantao},
  booktitle = {International Conference on Machine Learning},
  year      = {2025},
  note      = {arXiv:2506.11039}
}"""


@register("adg", references=(JIN_2025,), example="adg(3)")
@dataclass(frozen=True)
class ADG(Contrasting):
    r"""Angle domain guidance: rotate the prompt's clean sample away from the contrast's, with a bounded norm.

    With :math:`\theta` the angle between :math:`D_c` and :math:`D_u` and :math:`e` the part of :math:`D_c`
    perpendicular to :math:`D_u`:

    .. math:: \tilde D = \cos\gamma\, D_c + \frac{\sin\gamma}{\sin\theta}\, e,\qquad
              \gamma = \min\big((s - 1)\,\theta,\ \gamma_{max}\big)

    whose norm is at most :math:`\sqrt2` times that of :math:`D_c`, whatever the scale. On an estimate that earlier
    rules already improved it adds :math:`\tilde D - D_c`.

    Args:
        scale: s, any number up to 1e6 in size; 1 is no guidance. Below 1 it turns towards the contrast.
        largest: :math:`\gamma_{max}`, the largest angle in either sense, in degrees from 0 to 180; the paper has 60.
        against: the query that :math:`D_u` answers, as in `CFG`.

    Queries: "positive" and `against`, hence 2 evaluations a step; none of its own at ``scale=1``.

    State: none. Space: denoised, as in the paper. Trace ``adg_angle``: :math:`\gamma` in degrees. Where the two clean
    samples are parallel the rotation is not defined, and the estimate stays as it is.

    References:
        Jin, Xiao, Liu & Gu, "Angle Domain Guidance: Latent Diffusion Requires Rotation Rather Than Extrapolation",
        arXiv:2506.11039, Algorithm 1. Its authors' code adds 0.001 to s - 1.

    >>> from guidestack import ADG
    >>> print(ADG(6))
    adg(6)
    """

    space: ClassVar[Any] = "denoised"

    scale: float
    largest: float = 60.0
    against: Query | str = NEGATIVE

    def __post_init__(self) -> None:
        super().__post_init__()
        number(self, "largest", 0.0, 180.0)

    def guided(
        self, estimate: Estimate, c: Prediction, u: Prediction, step: Step, state: State
    ) -> tuple[Estimate, State]:
        """Rotate the prompt's clean sample away from the contrast's, by (scale - 1) angles but at most `largest`."""
        away, base = c.minus(u, "denoised"), norm(u.denoised)
        along = dot(away, u.denoised)
        # e: of D_u itself nothing is perpendicular
        away = torch.addcmul(away, u.denoised, -ratio(along, base.square()))
        size = norm(away)
        theta = torch.atan2(size * base, along + base.square())  # <D_c, D_u> = <D_c - D_u, D_u> + |D_u|^2
        largest = math.radians(self.largest)
        angle = ((self.scale - 1) * theta).clamp(-largest, largest)
        turned = away * ratio(angle.sin() * norm(c.denoised), size)  # sin(theta) = |e|/|D_c|
        change = torch.addcmul(turned, c.denoised, angle.cos() - 1)
        return estimate.plus("denoised", change, 1.0, adg_angle=angle.flatten().rad2deg()), state
