"""Training-free guidance (Ye et al. 2024), with DPS, LGD, FreeDoM, MPGD and UGD as settings of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from ..errors import RuleError
from ..fields import LARGEST, choice, number, whole
from ..keyed import Keys, normal
from ..notation.registry import register
from ..objective import Bound, smoothed_gradient
from ..steering import OVER, Shifting, along, over_steps, preserving
from ..step import Estimate, State, Step

YE_2024 = """@inproceedings{ye2024tfg,
  title     = {{TFG}: Unified Training-Free Guidance for Diffusion Models},
  author    = {Ye, Haotian and Lin, Haowei and Han, Jiaqi and Xu, Minkai and Liu, Sheng and Liang, Yitao and Ma, Jianzhu
               and Zou, James and Ermon, Stefano},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2024},
  note      = {arXiv:2409.15761}
}"""
CHUNG_2023 = """@inproceedings{chung2023diffusion,
  title     = {Diffusion Posterior Sampling for General Noisy Inverse Problems},
  author    = {Chung, Hyungjin and Kim, Jeongsol and Mccann, Michael Thompson and Klasky, Marc Louis and Ye, Jong Chul},
  booktitle = {International Conference on Learning Representations},
  year      = {2023},
  note      = {arXiv:2209.14687}
}"""


@register(
    "tfg",
    references=(YE_2024, CHUNG_2023),
    example=("tfg('blue', rho=1)", "cfg(3) | tfg('blue', mu=1, inner=2)"),
)
@dataclass(frozen=True)
class TFG(Shifting):
    r"""Training-free guidance: move along the gradient of an objective at the predicted clean sample.

    .. math::
        F(x_0) = \log \tfrac1n \textstyle\sum_j f(x_0 + \bar\gamma_t \delta_j), \quad
        \Delta_t = \rho_t \nabla_{x_t} F(\hat x_0(x_t)), \quad
        \Delta_0 = \textstyle\sum_i \mu_t \nabla F(x_0^{(i)}),\ x_0^{(i+1)} = x_0^{(i)} + \mu_t \nabla F(x_0^{(i)}), \\
        x_{t-1} = \mathrm{DDIM}(x_t, \hat x_0) + \Delta_t / \sqrt{\alpha_t} + \sqrt{\bar\alpha_{t-1}}\,\Delta_0

    The first gradient goes through the denoiser, the second does not and begins at :math:`x_0^{(0)} = \hat x_0`.

    :math:`\hat x_0` is the estimate of the rules before it: in ``cfg(4) | tfg(...)`` the gradient goes through all that
    classifier-free guidance evaluated. Since :math:`\alpha_t = \bar\alpha_t / \bar\alpha_{t-1}`, this step is DDIM's
    with the clean sample moved by :math:`\Delta_t / \sqrt{\bar\alpha_t} + \Delta_0` and its noise kept: exact for DDIM
    with any eta and for every other first-order scheduler; of others it is the form that `CFGPlusPlus` has. All symbols
    are those of the variance-preserving scaling of x, whatever the scheduler's own.

    Args:
        objective: the text of the objective, ``"blue"`` or ``"blur(2)"``; see docs/objectives.md.
        rho: :math:`\rho`, weight of the gradient through the denoiser, any number up to 1e6 in size.
        mu: :math:`\mu`, weight of the gradient at the clean sample, likewise. With `rho` and `mu` 0 it does nothing.
        smoothing: :math:`\bar\gamma` >= 0, the standard deviation of the noise over which the likelihood is averaged.
        inner: steps that `mu` makes from the clean sample, at least 1.
        recur: how often each step is made, 1. More is the move `Recur`: ``tfg(...) | recur(4)`` is the paper's
            :math:`N_{recur} = 4`.
        samples: n, draws of that noise; more than 1 only with `smoothing`.
        over: how :math:`\rho_t` and :math:`\mu_t` change over the steps, with mean 1: ``"increase"`` in proportion to
            :math:`\alpha_t`, ``"decrease"`` to :math:`1 - \alpha_t`, or ``"constant"``.
        smoothing_over: :math:`\bar\gamma_t`: ``"decrease"``, :math:`\bar\gamma \sqrt{1 - \bar\alpha_t}`, or
            ``"constant"``.

    Queries: none of its own. With `rho` every evaluation of the stack at the step has a backward pass, which the report
    names ``+grad`` and which costs about as much as two evaluations; memory is that of the graph of one step's
    evaluations. The objective is evaluated, with its gradient, ``samples * (inner if mu else 1)`` times a step.

    State: none. The noise comes from generators keyed by (seed, step, evaluation, turn, "tfg"), the same for both
    gradients. Space: denoised. At pure noise (alpha 0) `rho` does nothing. Trace ``log_f``, of the clean sample.

    References:
        Ye et al., "TFG: Unified Training-Free Guidance for Diffusion Models", arXiv:2409.15761, Algorithm 1 and table
        1; the schedules and the order of its official code. `rescale_grad` of that code, a clip that never acts on
        pictures, is left out.

    >>> from guidestack import TFG
    >>> print(TFG("blue", rho=1, mu=0.5))
    tfg('blue', rho=1, mu=0.5)
    """

    space: ClassVar[Any] = "denoised"
    neutral_values: ClassVar[Mapping[str, Any] | None] = {"rho": 0.0, "mu": 0.0}

    objective: str
    rho: float = 0.0
    mu: float = 0.0
    smoothing: float = 0.0
    inner: int = 1
    recur: int = 1
    samples: int = 1
    over: str = "increase"
    smoothing_over: str = "decrease"

    def __post_init__(self) -> None:
        super().__post_init__()
        number(self, "rho")
        number(self, "mu")
        number(self, "smoothing", 0, LARGEST)
        for name in ("inner", "recur", "samples"):
            whole(self, name, 1)
        choice(self, "over", OVER)
        choice(self, "smoothing_over", ("decrease", "constant"))
        if self.recur > 1:
            raise RuleError(
                f"TFG: repeating each step is a move of its own; write tfg(...) | recur({self.recur}) for "
                f"recur={self.recur}"
            )
        if self.samples > 1 and not self.smoothing:
            raise RuleError(f"TFG: samples={self.samples} draws noise of size smoothing=0; give a smoothing above 0")

    @property
    def differentiates(self) -> bool:
        """Whether the gradient goes through the denoiser: with `rho`."""
        return self.rho != 0

    def check_objective(self, objective: Bound) -> None:
        """Check that the rule can use an objective: that it has a gradient and is a function of clean samples.

        Raises:
            RuleError: it has no gradient, or sees noisy samples.
        """
        super().check_objective(objective)
        if objective.space == "noisy":
            raise RuleError(
                f"{self}: the objective {objective.name!r} sees noisy samples, and this rule gives it clean ones; take "
                f"classifier(scale, {objective.name!r})"
            )

    def differentiated(self, step: Step, state: State) -> bool:
        """Whether the gradient goes through the denoiser at this step: not at pure noise."""
        return self.differentiates and step.level.alpha > 0

    def steered(self, estimate: Estimate, objective: Bound, step: Step) -> Estimate:
        r"""The estimate with its clean sample moved by :math:`\Delta_t / \sqrt{\bar\alpha_t} + \Delta_0`."""
        x0 = estimate.read("denoised").detach()
        noises = self._noises(x0, step)
        weight = over_steps(step, self.over)
        value, slope = smoothed_gradient(objective, x0, noises)
        moved = x0
        for inner in range(self.inner if self.mu else 0):
            if inner:
                _, ahead = smoothed_gradient(objective, moved, noises)
            moved = moved + self.mu * weight * (ahead if inner else slope)
        change = moved - x0
        if self.differentiated(step, ()):
            alpha, _ = preserving(step.level)
            scaling = step.level.alpha / alpha  # x is that of the papers times this
            change = change + self.rho * weight / alpha * scaling * estimate.pulled_back(slope)
        return along(estimate, change, log_f=value)

    def _noises(self, x0: Tensor, step: Step) -> list[Tensor]:
        """The noise over which the likelihood is averaged: one of size 0 where there is none."""
        size = self.smoothing * (preserving(step.level)[1] if self.smoothing_over == "decrease" else 1.0)
        if not size:
            return [torch.zeros_like(x0)]
        seeds = step.run.seeds or tuple(range(len(x0)))
        generators = Keys(seeds, step.index, step.evaluation, step.turn).generators(range(len(x0)), "tfg")
        return [size * normal(generators, x0.shape[1:], x0.device).to(x0.dtype) for _ in range(self.samples)]

    @classmethod
    def dps(cls, objective: str, rho: float) -> Self:
        r"""Return TFG with the settings of DPS (arXiv:2209.14687): through the denoiser, unsmoothed, constant weight.

        Chung et al.'s step :math:`\zeta' \nabla_{x_t} \|y - A\hat x_0\|^2 / \|y - A\hat x_0\|` is that of
        :math:`\log f = -\|y - A\hat x_0\|` with :math:`\rho = 2\zeta'`; where it is subtracted behind the step, as
        there, it is :math:`\sqrt{\alpha_t}` times the one here.
        """
        return cls(objective, rho=rho, over="constant")

    @classmethod
    def lgd(cls, objective: str, rho: float, samples: int = 10) -> Self:
        r"""Return TFG with the settings of LGD (ICML 2023): DPS averaged over noise of the level's size.

        The noise has the deviation :math:`\sqrt{1 - \bar\alpha_t}`. The code of Song et al. divides the gradient by
        the number of draws once more, which is left out.
        """
        return cls(objective, rho=rho, smoothing=1, samples=samples, over="constant")

    @classmethod
    def freedom(cls, objective: str, rho: float) -> Self:
        r"""Return the DPS step of FreeDoM (Yu et al., arXiv:2303.09833); its time travel is ``... | Recur(times)``."""
        return cls(objective, rho=rho, over="constant")

    @classmethod
    def mpgd(cls, objective: str, mu: float) -> Self:
        """Return TFG with the settings of MPGD (He et al., arXiv:2311.16424): the clean sample's gradient alone."""
        return cls(objective, mu=mu, over="constant")

    @classmethod
    def ugd(cls, objective: str, rho: float, mu: float, inner: int = 1) -> Self:
        """Return TFG with the settings of UGD (Bansal et al., arXiv:2302.07121): both gradients; add `Recur` to it."""
        return cls(objective, rho=rho, mu=mu, inner=inner, over="constant")
