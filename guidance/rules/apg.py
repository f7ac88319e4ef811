"""Adaptive projected guidance (Sadat et al. 2024)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ..errors import RuleError
from ..fields import choice, number, set_field
from ..per_sample import dot, ratio
from ..prediction import wide
from ..query import NEGATIVE, POSITIVE, Predictions, Query
from ..registry import register
from ..rule import Estimate, Rule, Run, State, Step

SADAT_2024 = """@inproceedings{sadat2025eliminating,
  title     = {Eliminating Oversaturation and Artifacts of High Guidance Scales in Diffusion Models},
  author    = {Sadat, Seyedmorteza and Hilliges, Otmar and Weber, Romann M.},
  booktitle = {International Conference on Learning Representations},
  year      = {2025},
  note      = {arXiv:2410.02416}
}"""


class Momentum(NamedTuple):
    """What APG remembers: the running sum of the differences, shape ``(B, ...)``, neither clipped nor projected."""

    average: Tensor


@register("apg", cost="2; 1 at scale 1", references=(SADAT_2024,))
@dataclass(frozen=True)
class APG(Rule):
    r"""Adaptive projected guidance: classifier-free guidance without the part that only saturates.

    On denoised predictions, in this order:

    .. math::
        m_t &= (D_c - D_u) + \beta\, m_{t+1} \\
        d &= m_t \min(1,\ r / \lVert m_t\rVert) \\
        \tilde D &= D_c + (s - 1)\,(d_\perp + \eta\, d_\parallel),\qquad
            d_\parallel = \frac{\langle d, D_c\rangle}{\langle D_c, D_c\rangle} D_c,\quad d_\perp = d - d_\parallel

    On an estimate that earlier rules already improved it adds the same :math:`(s - 1)(\dots)`.

    Args:
        scale: s, any finite number; 1 is no guidance.
        eta: :math:`\eta`, the share kept of the part parallel to the prompt's prediction. The paper recommends 0; 1
            keeps all of it: with no radius and no momentum that is classifier-free guidance.
        radius: r > 0, the largest norm of a sample's update, in units of the latents; None for no limit.
        momentum: :math:`\beta` in (-1, 1); negative values push away from the earlier updates. 0 is none.
        radius_unit: ``"absolute"``, or ``"per_sqrt_dim"``: times the square root of the number of elements that the
            norm runs over, so that one value serves all sizes.
        axes: axes of the norm, counted with the batch as axis 0; None for all but the batch. Sequence models take the
            norm over time only.
        against: the query that :math:`D_u` answers, as of `CFG`.

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
    neutral_values: ClassVar[Mapping[str, Any] | None] = {"scale": 1.0}

    scale: float
    eta: float = 0.0
    radius: float | None = None
    momentum: float = 0.0
    radius_unit: str = "absolute"
    axes: tuple[int, ...] | None = None
    against: Query | str = NEGATIVE

    def __post_init__(self) -> None:
        number(self, "scale")
        number(self, "eta")
        if self.radius is not None and number(self, "radius") <= 0:
            raise RuleError(f"APG: radius must be above 0, or None for no limit; got {self.radius!r}")
        if abs(number(self, "momentum")) >= 1:
            raise RuleError(f"APG: momentum must be in (-1, 1), or the sum of the updates grows; got {self.momentum!r}")
        choice(self, "radius_unit", ("absolute", "per_sqrt_dim"))
        if self.axes is not None:
            whole = isinstance(self.axes, tuple | list) and all(type(axis) is int for axis in self.axes)
            if not whole or not self.axes or 0 in self.axes or len(set(self.axes)) < len(self.axes):
                raise RuleError(f"APG: axes are different whole numbers, none of them the batch's 0; got {self.axes!r}")
            set_field(self, "axes", tuple(self.axes))
        set_field(self, "against", Query.of(self.against))

    @property
    def contrast(self) -> Query:
        """`against`."""
        return Query.of(self.against)

    def init(self, run: Run) -> State:
        """No momentum yet.

        Raises:
            RuleError: samples have no such axis.
        """
        for axis in self.axes or ():
            if not (0 < axis < len(run.shape) or -len(run.shape) < axis < 0):
                raise RuleError(f"APG: samples of shape {run.shape[1:]} with a batch axis have no axis {axis}")
        if not self.momentum or self.scale == 1:
            return ()
        return Momentum(torch.zeros(run.shape, dtype=wide(run.dtype), device=run.device))

    def asks(self) -> frozenset[Query]:
        """The prompt and the contrast, unless the scale makes the latter vanish."""
        return frozenset() if self.scale == 1 else frozenset({POSITIVE, self.contrast})

    def update(self, estimate: Estimate, predictions: Predictions, step: Step, state: State) -> tuple[Estimate, State]:
        """The equations above. Trace ``apg_clip``: the factor of the clip (the smallest, if `axes` leave several)."""
        if self.scale == 1:
            return estimate, state
        denoised = predictions[POSITIVE].denoised
        difference = denoised - predictions[self.contrast].denoised
        if isinstance(state, Momentum):
            # At the first evaluation the sum is 0: nothing of the momentum is in it yet.
            difference = difference + self.momentum * state.average
            state = Momentum(difference)
        traces = {}
        if self.radius is not None:
            clip = self._clip(difference)
            difference = difference * clip
            traces["apg_clip"] = clip.flatten(1).amin(1)
        parallel = ratio(dot(difference, denoised), dot(denoised, denoised)) * denoised
        added = (self.scale - 1) * (difference + (self.eta - 1) * parallel)
        return estimate.replace("denoised", estimate.read("denoised") + added, **traces), state

    def _clip(self, difference: Tensor) -> Tensor:
        assert self.radius is not None  # asked for only then
        square = dot(difference, difference, self.axes)
        elements = difference.numel() / square.numel()
        radius = self.radius * (math.sqrt(elements) if self.radius_unit == "per_sqrt_dim" else 1.0)
        return (radius / square.sqrt()).clamp(max=1)  # a difference of 0 gives inf, and stays as it is
