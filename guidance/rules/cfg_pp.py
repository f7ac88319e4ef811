"""CFG++: denoise with guidance, re-noise without (Chung et al. 2024)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ..errors import RuleError
from ..fields import choice, number, set_field
from ..notation.registry import register
from ..query import NEGATIVE, NULL, POSITIVE, Predictions, Query
from ..rule import Rule
from ..step import Estimate, State, Step
from .cfg import extrapolated

CHUNG_2024 = """@inproceedings{chung2025cfgpp,
  title     = {{CFG++}: Manifold-constrained Classifier Free Guidance for Diffusion Models},
  author    = {Chung, Hyungjin and Kim, Jeongsol and Park, Geon Yeong and Nam, Hyelin and Ye, Jong Chul},
  booktitle = {International Conference on Learning Representations},
  year      = {2025},
  note      = {arXiv:2406.08070}
}"""

MATCHED: tuple[tuple[float, float], ...] = ((0.2, 2.0), (0.4, 5.0), (0.6, 7.5), (0.8, 9.0), (1.0, 12.5))
"""Pairs (scale of CFG++, scale of CFG) that the paper compares, Stable Diffusion with 50 steps of DDIM."""


def matching_cfg_scale(scale: float) -> float:
    """The CFG scale that the paper's table sets against a CFG++ scale, linear between its rows.

    The pairs hold for Stable Diffusion with 50 steps of DDIM. CFG++ at one scale guides the more the more steps there
    are; what one step of a first-order solver amounts to is `CFGPlusPlus.cfg_scale`.

    Args:
        scale: of CFG++, in [0, 1]. At 0 it is 0: both are then the unconditional model.

    Raises:
        RuleError: outside of [0, 1].

    >>> matching_cfg_scale(0.6), matching_cfg_scale(0.7)
    (7.5, 8.25)
    """
    rows = ((0.0, 0.0), *MATCHED)
    if not 0 <= scale <= 1:
        raise RuleError(f"the scale of CFG++ is in [0, 1], got {scale!r}")
    for (low, low_cfg), (high, high_cfg) in itertools.pairwise(rows):
        if scale <= high:
            share = (scale - low) / (high - low)
            return round(low_cfg + share * (high_cfg - low_cfg), 12)
    raise AssertionError("the table ends at 1")


@register("cfgpp", references=(CHUNG_2024,), example="cfgpp(0.6)")
@dataclass(frozen=True)
class CFGPlusPlus(Rule):
    r"""CFG++: step to an interpolation of both predictions, and re-noise with the unconditional noise.

    .. math::
        D_\lambda = D_u + \lambda\,(D_c - D_u),\qquad x' = \alpha' D_\lambda + \sigma' \epsilon_u

    for DDIM; for any other solver, :math:`x' = \mathrm{solver}(u) + \alpha'\,(D_\lambda - D_u)`, which is the published
    form for Euler, ancestral Euler, 2S-ancestral and 2M. With a first-order deterministic solver it is classifier-free
    guidance of scale :math:`\lambda k / (k - k')`, where k is sigma/alpha before and k' after the step: a large one
    early, :math:`\lambda` in the last step. At :math:`\lambda = 1` it is therefore not the conditional sampler.

    On an estimate that earlier rules already improved it adds :math:`(\lambda - 1)(D_c - D_u)`. To have all of what
    another rule does multiplied by :math:`\lambda`, give that rule the scale and put ``renoise("null")`` behind it:
    ``perpneg(0.6) | renoise("null")``.

    Args:
        scale: :math:`\lambda` in [0, 1]. 0 is the unconditional model.
        against: the query that u answers, as in `CFG`.
        second_order: the newest prediction in the difference by which DPM-Solver++ 2M is of the second order, whose
            older one is always unconditional. ``"renoise"``: the unconditional one, as in the paper's general form and
            the authors' code for SDXL. ``"guided"``: :math:`D_\lambda`, as in the authors' code for Stable Diffusion
            1.5 and in the nodes that follow it, which adds :math:`\lambda (D_c - D_u)` times
            :math:`(1 - e^{-h})\,h / (2 h_{old})` more. First-order solvers have no such difference, and both are the
            same; other solvers refuse the second.

    Queries: "positive" and `against`, hence 2 evaluations a step at any scale.

    State: none. Space: any.

    References:
        Chung et al., "CFG++: Manifold-constrained Classifier Free Guidance for Diffusion Models", arXiv:2406.08070,
        eqs. 9-10 and Algorithm 2.

    >>> from guidestack import CFGPlusPlus
    >>> round(CFGPlusPlus(0.6).cfg_scale(2.0, 1.5), 6)
    2.4
    """

    neutral_values: ClassVar[Mapping[str, Any] | None] = None

    scale: float
    against: Query | str = NEGATIVE
    second_order: str = "renoise"

    def __post_init__(self) -> None:
        choice(self, "second_order", ("renoise", "guided"))
        value = number(self, "scale")
        if not 0 <= value <= 1:
            hint = ""
            if value > 1:
                rows = ((0.0, 0.0), *MATCHED)
                near = min(rows, key=lambda row: abs(row[1] - value))
                hint = f"; a CFG scale of {near[1]:g} corresponds to {near[0]:g} (50 steps of DDIM)"
            raise RuleError(
                f"CFGPlusPlus: scale interpolates between the unconditional (0) and the conditional (1) model, and is "
                f"not the scale of CFG; got {value:g}{hint}"
            )
        set_field(self, "against", Query.of(self.against))

    @property
    def contrast(self) -> Query:
        """The query that the rule guides away from: its parameter `against`."""
        return Query.of(self.against)

    @property
    def renoises(self) -> bool:
        """True: the rule sets the prediction that the sampler re-noises with."""
        return True

    @property
    def guides_history(self) -> bool:
        """Whether a second-order solver's difference takes the guided prediction, as `second_order` says."""
        return self.second_order == "guided"

    def cfg_scale(self, k_sigma: float, after: float) -> float:
        r"""The scale of CFG that takes the same first-order step, :math:`\lambda k / (k - k')`.

        Args:
            k_sigma: k, sigma/alpha before the step; may be infinite.
            after: k', sigma/alpha after the step, in [0, k). Of an ancestral step the part before fresh noise is added.

        Raises:
            RuleError: the step leads to no lower level.
        """
        if not 0 <= after < k_sigma:
            raise RuleError(f"a step leads from a noise level k to a lower one k'; got {k_sigma:g}, {after:g}")
        return self.scale if math.isinf(k_sigma) else self.scale * k_sigma / (k_sigma - after)

    def asks(self) -> frozenset[Query]:
        """The prompt and the contrast, whose answer is what the sampler re-noises with."""
        return frozenset({POSITIVE, self.contrast})

    def update(self, estimate: Estimate, predictions: Predictions, step: Step, state: State) -> tuple[Estimate, State]:
        """The guided prediction to jump to, and the contrast to re-noise with."""
        u = predictions[self.contrast]
        guided = extrapolated(estimate, predictions[POSITIVE], u, self.scale)
        return Estimate(guided.prediction, u, guided.traces), state


@register("renoise", references=(CHUNG_2024,), example="cfg(3) | renoise()")
@dataclass(frozen=True)
class Renoise(Rule):
    r"""Re-noise with the prediction of one query, and leave the estimate as it is: the second half of CFG++.

    .. math:: x' = \alpha' \hat D + \sigma' \epsilon_q

    so that ``cfg(0.6) | renoise("negative")`` is ``cfgpp(0.6)``, and ``perpneg(0.6) | renoise()`` its Perp-Neg form.
    Other solvers as in `CFGPlusPlus`.

    Args:
        query: whose noise; ``"null"`` is the true empty prompt, ``"positive"`` the prompt.

    Queries: `query`. State: none. Space: any.

    References:
        Chung et al., arXiv:2406.08070, Algorithm 2, with the two predictions apart.

    >>> from guidestack import CFG, Renoise
    >>> print(CFG(0.6) | Renoise("negative"))
    cfg(0.6) | renoise(query='negative')
    """

    neutral_values: ClassVar[Mapping[str, Any] | None] = None

    query: Query | str = NULL

    def __post_init__(self) -> None:
        set_field(self, "query", Query.of(self.query))

    @property
    def renoises(self) -> bool:
        """True: the rule sets the prediction that the sampler re-noises with."""
        return True

    @property
    def guides(self) -> bool:
        """False: the rule changes what the sampler re-noises with, and nothing else."""
        return False

    def asks(self) -> frozenset[Query]:
        """The query whose answer the sampler re-noises with."""
        return frozenset({Query.of(self.query)})

    def update(self, estimate: Estimate, predictions: Predictions, step: Step, state: State) -> tuple[Estimate, State]:
        """The estimate as it is, with the answer to `query` to re-noise with."""
        return Estimate(estimate.prediction, predictions[Query.of(self.query)], estimate.traces), state
