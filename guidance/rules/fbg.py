"""Feedback guidance, FBG (Koulischer et al. 2025)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ..contrasting import Contrasting
from ..errors import RuleError
from ..fields import number, set_field
from ..notation.registry import register
from ..per_sample import dot, norm
from ..prediction import Level, Prediction, wide
from ..query import NEGATIVE, Query
from ..step import Estimate, Run, State, Step

KOULISCHER_2025 = """@inproceedings{koulischer2025feedback,
  title     = {Feedback Guidance of Diffusion Models},
  author    = {Koulischer, Felix and Handke, Florian and Deleu, Johannes and Demeester, Thomas and Ambrogioni, Luca},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2025},
  note      = {arXiv:2506.06085}
}"""
LARGEST_LOG = 3.0
"""Where the logarithm is cut above: there the scale is next to 1."""


class Made(NamedTuple):
    """A finished step, whose evidence about the path is known at the next evaluation.

    Attributes:
        level: of its noisy sample y.
        difference: d, shape ``(B, ...)``.
        noisy: the inner product of d with y, one number a sample, with its axes of size 1.
        contrast: likewise with the contrast's clean sample.
    """

    level: Level
    difference: Tensor
    noisy: Tensor
    contrast: Tensor


class Posterior(NamedTuple):
    """What feedback guidance remembers: the logarithm of p, one number a sample, and the step before."""

    log: Tensor
    step: Made | None = None


@register("fbg", references=(KOULISCHER_2025,), example="fbg(0.9, 0.5, -0.1)")
@dataclass(frozen=True)
class FBG(Contrasting):
    r"""Feedback guidance: a scale for each sample that grows while its path is improbable under the prompt.

    .. math:: \tilde D = D_u + w\,(D_c - D_u),\qquad w = \frac{p}{p - (1 - \pi)}

    p is how likely the path so far is under the prompt, relative to the contrast. In the scaling y = x/alpha of noise
    k = sigma/alpha, a step from k to k' has under either prediction the mean :math:`\mu = r y + (1 - r) D` with
    :math:`r = k'^2/k^2` and the variance :math:`v = (k^2 - k'^2)\,r`:

    .. math:: \log p' = \log p - \frac{\tau}{2 v}\big(\lVert y' - \mu_c\rVert^2 - \lVert y' - \mu_u\rVert^2\big)
              + \delta

    kept between the value at which w is `largest` and 3; it is 0 at the start. On an estimate that earlier rules
    already improved it adds :math:`(w - 1)(D_c - D_u)`.

    Args:
        prior: :math:`\pi` in (0, 1], how much the conditional model is trusted; 1 is no guidance.
        temperature: :math:`\tau` >= 0.
        offset: :math:`\delta`, below 0 as a rule: what makes the scale grow where the path says nothing.
        largest: the largest w, above 1.
        against: the query that :math:`D_u` answers, as in `CFG`.

    Queries: "positive" and `against`, hence 2 evaluations a step; none of its own at ``prior=1``.

    State: the logarithm, one number a sample, and of the step before the difference, ``(B, ...)`` in float32 or better,
    with two numbers a sample. Space: denoised. Trace ``fbg_scale``: w. A solver's second evaluation in a step has the
    scale of the first.

    References:
        Koulischer, Handke, Deleu, Demeester & Ambrogioni, "Feedback Guidance of Diffusion Models", arXiv:2506.06085.
        For N steps its authors set :math:`\delta = \log((1-\pi)\,\lambda/(\lambda-1)) / ((1 - t_0) N)`, which reaches
        the scale :math:`\lambda = 3` at the time :math:`t_0`, and :math:`\tau = 0.2\,|\delta|\, v(t_1)`.

    >>> from guidestack import FBG
    >>> print(FBG(0.95, temperature=0.2, offset=-0.1))
    fbg(0.95, 0.2, -0.1)
    """

    space: ClassVar[Any] = "denoised"
    neutral_values: ClassVar[Mapping[str, Any] | None] = {"prior": 1.0}

    prior: float
    temperature: float
    offset: float
    largest: float = 10.0
    against: Query | str = NEGATIVE

    def __post_init__(self) -> None:
        if number(self, "prior", 0.0, 1.0) == 0:
            raise RuleError(f"FBG: prior must be above 0, at most 1; got {self.prior!r}")
        number(self, "temperature", 0.0)
        number(self, "offset")
        if number(self, "largest") <= 1:
            raise RuleError(f"FBG: largest must be above 1, got {self.largest!r}")
        set_field(self, "against", Query.of(self.against))

    @property
    def least_log(self) -> float:
        """The logarithm of p at which the scale is `largest`."""
        return math.log((1 - self.prior) * self.largest / (self.largest - 1))

    def init(self, run: Run) -> State:
        """Return the state before the first step, in which nothing is known of the path."""
        if self.off:
            return ()
        shape = (run.batch, *[1] * (len(run.shape) - 1))
        return Posterior(torch.zeros(shape, dtype=wide(run.dtype), device=run.device).clamp_(min=self.least_log))

    def guided(
        self, estimate: Estimate, c: Prediction, u: Prediction, step: Step, state: Posterior
    ) -> tuple[Estimate, State]:
        """Guide by the scale that the path's posterior gives, updated once a step. Trace ``fbg_scale``: that scale."""
        difference = c.minus(u, "denoised")
        if step.evaluation == 0:
            noisy = c.x.to(difference.dtype) / c.level.alpha
            log = self._after(state, noisy, c.level)
            made = Made(c.level, difference, dot(difference, noisy), dot(difference, u.denoised))
            state = Posterior(log, made)
        p = state.log.exp()
        more = (1 - self.prior) / (p - (1 - self.prior))  # w - 1 of the equation
        return estimate.plus("denoised", difference, 1.0, more, fbg_scale=1 + more.flatten()), state

    def _after(self, before: Posterior, noisy: Tensor, level: Level) -> Tensor:
        """The logarithm of p' at the sample that the step before led to."""
        if before.step is None or not level.k_sigma < before.step.level.k_sigma < math.inf:
            return before.log
        earlier, d, noisy_then, contrast = before.step
        r = (level.k_sigma / earlier.k_sigma) ** 2
        variance = (earlier.k_sigma**2 - level.k_sigma**2) * r
        # |y' - mu_c|^2 - |y' - mu_u|^2 = (1-r)^2 |d|^2 - 2 (1-r) <d, y' - r y - (1-r) D_u>, with mu_c = mu_u + (1-r) d
        away = dot(d, noisy) - r * noisy_then - (1 - r) * contrast
        further = (1 - r) ** 2 * norm(d).square() - 2 * (1 - r) * away
        log = before.log - self.temperature / (2 * variance) * further + self.offset
        return log.clamp(self.least_log, max(LARGEST_LOG, self.least_log))
