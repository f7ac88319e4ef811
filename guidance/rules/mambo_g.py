"""Magnitude-aware mitigation for boosted guidance, MAMBO-G (Zhu et al. 2025)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ..contrasting import Contrasting
from ..fields import number
from ..notation.registry import register
from ..per_sample import norm, ratio
from ..prediction import Prediction
from ..query import NEGATIVE, Query
from ..step import Estimate, State, Step

ZHU_2025 = """@article{zhu2025mambog,
  title   = {{MAMBO-G}: Magnitude-Aware Mitigation for Boosted Guidance},
  author  = {Zhu, Shangwen and others},
  journal = {arXiv preprint arXiv:2508.03442},
  year    = {2025}
}"""


@register("mambo_g", references=(ZHU_2025,), example="mambo_g(10, alpha=2)")
@dataclass(frozen=True)
class MamboG(Contrasting):
    r"""MAMBO-G: a scale for each sample and step that falls as the difference grows relative to the contrast.

    On velocities:

    .. math:: \tilde v = v_u + s'\,(v_c - v_u),\qquad
              s' = 1 + (s - 1)\,\exp\!\Big(-\alpha\,\frac{\lVert v_c - v_u\rVert}{\lVert v_u\rVert}\Big)

    On an estimate that earlier rules already improved it adds :math:`(s' - 1)(v_c - v_u)`.

    Args:
        scale: s, the largest scale; 1 is no guidance. The paper writes ``1 + w exp(...)``, with w = s - 1.
        alpha: how fast the scale falls, >= 0; 0 is `CFG`.
        against: the query that :math:`v_u` answers, as in `CFG`.

    Queries: "positive" and `against`, hence 2 evaluations a step; none of its own at ``scale=1``.

    State: none. Space: velocity, as the paper has it: the quotient of the norms is another one in other spaces. Trace
    ``mambo_scale``: s'.

    References:
        Zhu et al., "MAMBO-G: Magnitude-Aware Mitigation for Boosted Guidance", arXiv:2508.03442; its authors' guider
        in diffusers has scale 10 and alpha 8.

    >>> from guidestack import MamboG
    >>> print(MamboG(10))
    mambo_g(10)
    """

    space: ClassVar[Any] = "velocity"
    neutral_values: ClassVar[Mapping[str, Any] | None] = {"scale": 1.0}

    scale: float
    alpha: float = 8.0
    against: Query | str = NEGATIVE

    def __post_init__(self) -> None:
        super().__post_init__()
        number(self, "alpha", 0.0)

    def guided(
        self, estimate: Estimate, c: Prediction, u: Prediction, step: Step, state: State
    ) -> tuple[Estimate, State]:
        """Guide by a scale that falls with the difference's relative norm. Trace ``mambo_scale``: that scale."""
        difference = c.minus(u, "velocity")
        factor = torch.exp(-self.alpha * ratio(norm(difference), norm(u.velocity)))
        scale = 1 + (self.scale - 1) * factor.flatten()
        return estimate.plus("velocity", difference, self.scale - 1, factor, mambo_scale=scale), state
