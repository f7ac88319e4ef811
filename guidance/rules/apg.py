"""Adaptive projected guidance (Sadat et al. 2024)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ..contrasting import Contrasting
from ..errors import RuleError
from ..fields import SMALLEST, axes_in, choice, number, sample_axes
from ..notation.registry import register
from ..per_sample import norm, projected
from ..prediction import Prediction, wide
from ..query import NEGATIVE, Query
from ..step import Estimate, Run, State, Step

SADAT_2024 = """@inproceedings{sadat2025eliminating,
  title     = {Eliminating Oversaturation and Artifacts of High Guidance Scales in Diffusion Models},
  author    = {Sadat, Seyedmorteza and Hilliges, Otmar and Weber, Romann M.},
  booktitle = {International Conference on Learning Representations},
  year      = {2025},
  note      = {arXiv:2410.02416}
}"""


class Sum(NamedTuple):
    """What APG remembers: the running sum of the differences, shape ``(B, ...)``, neither clipped nor projected."""

    average: Tensor


@register("apg", references=(SADAT_2024,), example="apg(3, radius=2, momentum=-0.5)")
@dataclass(frozen=True)
class APG(Contrasting):
    r"""Adaptive projected guidance: classifier-free guidance without the part that only saturates.

    On denoised predictions, in this order:

    .. math::
        m_t &= (D_c - D_u) + \beta\, m_{t+1} \\
        d &= m_t \min(1,\ r / \lVert m_t\rVert) \\
        \tilde D &= D_c + (s - 1)\,(d_\perp + \eta\, d_\parallel),\qquad
            d_\parallel = \frac{\langle d, D_c\rangle}{\langle D_c, D_c\rangle} D_c,\quad d_\perp = d - d_\parallel

    On an estimate that earlier rules already improved it adds the same :math:`(s - 1)(\dots)`.

    Args:
        scale: s, any number up to 1e6 in size; 1 is no guidance.
        eta: :math:`\eta`, the share kept of the part parallel to the prompt's prediction. The paper recommends 0; 1
            keeps all of it: with no radius and no momentum that is classifier-free guidance.
        radius: r > 0, the largest norm of a sample's update, in units of the latents; None for no limit.
        momentum: :math:`\beta` in (-1, 1); negative values push away from the earlier updates. 0 is none.
        radius_unit: ``"absolute"``, or ``"per_sqrt_dim"``: times the square root of the number of elements that the
            norm runs over, so that one value serves all sizes.
        axes: axes of the norms and of the projection, counted with the batch as axis 0; None for all but the batch.
            Sequence models take time only: each channel then has a norm, a clip and a parallel part of its own.
        against: the query that :math:`D_u` answers, as in `CFG`.

    Queries: "positive" and `against`, hence 2 evaluations a step; none of its own at ``scale=1``.

    State: the momentum, ``(B, ...)`` in float32 or better; it starts at 0 at whatever step the run begins. Space:
    denoised, as the paper has it: projection and norm mean something else elsewhere.

    References:
        Sadat, Hilliges & Weber, "Eliminating Oversaturation and Artifacts of High Guidance Scales in Diffusion
        Models", arXiv:2410.02416, Algorithm 1.

    >>> from guidestack.guidance.testing import guide_once
    >>> from guidestack import APG, CFG
    >>> round(guide_once(APG(3, eta=1), x=1.0, sigma=1.0) - guide_once(CFG(3), x=1.0, sigma=1.0), 12)
    0.0
    """

    space: ClassVar[Any] = "denoised"

    scale: float
    eta: float = 0.0
    radius: float | None = None
    momentum: float = 0.0
    radius_unit: str = "absolute"
    axes: tuple[int, ...] | None = None
    against: Query | str = NEGATIVE

    def __post_init__(self) -> None:
        super().__post_init__()
        number(self, "eta")
        if self.radius is not None and number(self, "radius") < SMALLEST:
            raise RuleError(
                f"APG: radius must be above 0, {SMALLEST:g} at least, or None for no limit; got {self.radius!r}"
            )
        if abs(number(self, "momentum")) >= 1:
            raise RuleError(f"APG: momentum must be in (-1, 1), or the sum of the updates grows; got {self.momentum!r}")
        choice(self, "radius_unit", ("absolute", "per_sqrt_dim"))
        sample_axes(self, "axes")

    def init(self, run: Run) -> State:
        """The state before the first step: no momentum yet.

        Raises:
            RuleError: samples have no such axis.
        """
        axes_in(self, "axes", run.shape)
        if not self.momentum or self.off:
            return ()
        return Sum(torch.zeros(run.shape, dtype=wide(run.dtype), device=run.device))

    def guided(
        self, estimate: Estimate, c: Prediction, u: Prediction, step: Step, state: State
    ) -> tuple[Estimate, State]:
        """Clip, project and add c - u. Trace ``apg_clip``: the clip's factor, the least if `axes` leave several."""
        m, state = self._with_momentum(c.minus(u, "denoised"), state)
        clip = self._clip(m)
        # The clip multiplies all that is projected together by one number, and projection is linear: it comes last.
        update = projected(m, c.denoised, keep=self.eta, axes=self.axes)
        traces = {} if clip is None else {"apg_clip": clip.flatten(1).amin(1)}
        return estimate.plus("denoised", update, self.scale - 1, clip, **traces), state

    def _with_momentum(self, difference: Tensor, state: State) -> tuple[Tensor, State]:
        """The running sum with this difference, in its memory, and the state that keeps it."""
        if isinstance(state, Sum):
            state = Sum(difference.add_(state.average, alpha=self.momentum))
        return difference, state

    def _clip(self, difference: Tensor) -> Tensor | None:
        """The factor that brings the norm down to the radius; None without a radius."""
        if self.radius is None:
            return None
        size = norm(difference, self.axes)
        elements = difference.numel() / size.numel()
        radius = self.radius * (math.sqrt(elements) if self.radius_unit == "per_sqrt_dim" else 1.0)
        return (radius / size).clamp(max=1)  # a difference of 0 gives inf, and stays as it is
