"""The Gaussian mixture: a denoiser whose score, posterior mean, classifier and guided densities are closed forms.

It has the interface of a network, in every parameterization and at every level, so that what a rule does to it can be
checked against formulas instead of against another implementation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..prediction import EPSILON, X0, Level, Parameterization, convert
from ..query import Perturbation


@dataclass(frozen=True, eq=False)
class GaussianMixture:
    r"""Data :math:`x_0 \sim \sum_k w_k\, N(\mu_k, s_k^2 I)` and the exact denoiser of its noisy versions.

    At a level :math:`x = \alpha x_0 + \sigma\epsilon` component k is :math:`N(\alpha\mu_k, \alpha^2 s_k^2 + \sigma^2)`.
    A *condition* is a row of weights over the components: a class is its components, the empty prompt the weights
    themselves, a negative another class.

    Args:
        means: :math:`\mu_k`, shape ``(K, ...)``.
        stds: :math:`s_k > 0`, shape ``(K,)``.
        weights: :math:`w_k > 0`, shape ``(K,)``.
    """

    means: Tensor
    stds: Tensor
    weights: Tensor

    @classmethod
    def example(cls, shape: tuple[int, ...] = (2, 3, 3), components: int = 4) -> GaussianMixture:
        """A mixture in float64 with components of different places, widths and weights; always the same one."""
        index = torch.arange(components * math.prod(shape), dtype=torch.float64)
        means = 0.5 * (index * 1.7).sin().reshape(components, *shape)
        stds = 0.3 + 0.2 * torch.arange(components, dtype=torch.float64)
        weights = 1.0 + torch.arange(components, dtype=torch.float64)
        return cls(means, stds, weights / weights.sum())

    def condition(self, *components: int) -> Tensor:
        """The weights, shape ``(K,)``, of the class made of `components`; of all of them if none is named."""
        chosen = list(components) or list(range(len(self.weights)))
        return torch.zeros_like(self.weights).index_copy(0, torch.tensor(chosen), self.weights[chosen])

    def log_joint(self, x: Tensor, level: Level, conditions: Tensor, widen: float = 1.0) -> Tensor:
        r""":math:`\log\,(w_k\, p_t(x \mid k))` for every component, shape ``(B, K)``.

        Args:
            x: noisy samples, shape ``(B, ...)``.
            level: their level.
            conditions: weights over the components, shape ``(B, K)``.
            widen: factor on all stds, for a worse network.
        """
        variance = (level.alpha * widen * self.stds) ** 2 + level.sigma**2
        away = (x.unsqueeze(1) - level.alpha * self.means).flatten(2)
        size = away.shape[2]
        log_normal = -0.5 * ((away**2).sum(2) / variance + size * (2 * math.pi * variance).log())
        return conditions.log() + log_normal

    def log_density(self, x: Tensor, level: Level, conditions: Tensor) -> Tensor:
        """``log p_t(x | condition)`` with the condition's weights normalized, shape ``(B,)``."""
        return self.log_joint(x, level, conditions / conditions.sum(1, keepdim=True)).logsumexp(1)

    def denoised(self, x: Tensor, level: Level, conditions: Tensor, widen: float = 1.0) -> Tensor:
        r"""Posterior mean :math:`E[x_0 \mid x, c] = \sum_k r_k(x)\, (\mu_k + g_k (x - \alpha\mu_k))`.

        with responsibilities r and gains :math:`g_k = \alpha s_k^2 / (\alpha^2 s_k^2 + \sigma^2)`. Shape ``(B, ...)``.
        """
        ones = [1] * (x.ndim - 1)
        stds = widen * self.stds
        gain = (level.alpha * stds**2 / ((level.alpha * stds) ** 2 + level.sigma**2)).reshape(-1, *ones)
        each = self.means + gain * (x.unsqueeze(1) - level.alpha * self.means)
        responsibility = self.log_joint(x, level, conditions, widen).softmax(1)
        return (responsibility.reshape(*responsibility.shape, *ones) * each).sum(1)


@dataclass(frozen=True, eq=False)
class MixtureDenoiser:
    """A mixture as a network: ``model(x, level, conditions)``.

    Args:
        mixture: the data.
        parameterization: what the network emits.
        widen: factor on the mixture's stds: other than 1 for a worse network.

    It can be perturbed: ``"widen"`` multiplies the stds by ``1 + amount`` for one evaluation; ``"time"`` and
    ``"conditioning"`` let it believe in a noise level of ``exp(amount * n)`` times the true one, n a normal number for
    each sample.
    """

    mixture: GaussianMixture
    parameterization: Parameterization = EPSILON
    widen: float = 1.0
    perturbations = frozenset({"widen", "time", "conditioning"})

    def __call__(
        self,
        x: Tensor,
        level: Level,
        conditions: Tensor,
        /,
        perturbation: Perturbation | None = None,
        generators: Sequence[torch.Generator] = (),
    ) -> Tensor:
        """The native output for x, shape ``(B, ...)``, in the type of x; computed in the mixture's type."""
        wide = x.to(self.mixture.means.dtype)
        conditions = conditions.to(wide.dtype)
        if perturbation and perturbation.kind != "widen":
            rows = []
            for row, condition, generator in zip(wide, conditions, generators, strict=True):
                away = math.exp(perturbation.amount * float(torch.randn((), generator=generator, dtype=torch.float32)))
                believed = Level.ve(level.k_sigma * away)
                rows.append(self.mixture.denoised(row[None] / level.alpha, believed, condition[None], self.widen))
            denoised = torch.cat(rows)
        else:
            widen = self.widen * (1 + perturbation.amount if perturbation else 1)
            denoised = self.mixture.denoised(wide, level, conditions, widen)
        return convert(denoised, wide, level, X0, self.parameterization).to(x.dtype)


class Gaussian1D:
    r"""The smallest oracle, for doctests: :math:`p(x_0 \mid \mathrm{positive}) = N(0, 1)`, all data :math:`N(0, 2)`.

    At a noise level sigma (VE) the denoisers are ``x / (1 + sigma^2)`` and ``2x / (2 + sigma^2)``. Under CFG of scale w
    from infinite noise, DDIM ends with variance ``2^(1-w)``.
    """

    variances: ClassVar[dict[str, float]] = {"positive": 1.0, "null": 2.0, "negative": 2.0}

    def denoised(self, condition: Literal["positive", "null", "negative"], x: float, sigma: float) -> float:
        """The posterior mean of one number."""
        variance = self.variances[condition]
        return variance * x / (variance + sigma**2)


gaussian_1d = Gaussian1D()
