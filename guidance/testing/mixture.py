"""The Gaussian mixture: a denoiser whose score, posterior mean, classifier and guided densities are closed forms.

It has the interface of a network, in every parameterization and at every level, so that what a rule does to it can be
checked against formulas instead of against another implementation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..prediction import EPSILON, X0, Level, Parameterization, convert
from ..query import Perturbation, PromptEdit
from ..rules.nag import normalized
from ..rules.nasa import steered
from ..rules.pladis import beyond
from ..rules.tome import grouped


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

    def log_joint(self, x: Tensor, level: Level, conditions: Tensor) -> Tensor:
        r""":math:`\log\,(w_k\, p_t(x \mid k))` for every component, shape ``(B, K)``.

        Args:
            x: noisy samples, shape ``(B, ...)``.
            level: their level.
            conditions: weights over the components, shape ``(B, K)``.
        """
        return self._log_joint(x.flatten(1), level.alpha, level.sigma, conditions, 1.0)

    def _log_joint(self, x: Tensor, alpha: float, sigma: float | Tensor, conditions: Tensor, widen: float) -> Tensor:
        """`log_joint` of flat samples ``(B, D)``; sigma is a number, or one for each sample, shape ``(B, 1)``."""
        means = self.means.flatten(1)
        variance = (alpha * widen * self.stds) ** 2 + sigma**2
        # |x - alpha m|^2 as a product of matrices: no tensor of shape (B, K, D)
        squares = (x**2).sum(1, keepdim=True) - 2 * alpha * (x @ means.T) + alpha**2 * (means**2).sum(1)
        return conditions.log() - 0.5 * (squares / variance + x.shape[1] * (2 * math.pi * variance).log())

    def log_density(self, x: Tensor, level: Level, conditions: Tensor) -> Tensor:
        """``log p_t(x | condition)`` with the condition's weights normalized, shape ``(B,)``."""
        return self.log_joint(x, level, conditions / conditions.sum(1, keepdim=True)).logsumexp(1)

    def denoised(self, x: Tensor, level: Level, conditions: Tensor) -> Tensor:
        r"""Posterior mean :math:`E[x_0 \mid x, c] = \sum_k r_k(x)\, (\mu_k + g_k (x - \alpha\mu_k))`.

        with responsibilities r and gains :math:`g_k = \alpha s_k^2 / (\alpha^2 s_k^2 + \sigma^2)`. Shape ``(B, ...)``.
        """
        return self._denoised(x.flatten(1), level.alpha, level.sigma, conditions, 1.0).reshape(x.shape)

    def _denoised(
        self,
        x: Tensor,
        alpha: float,
        sigma: float | Tensor,
        conditions: Tensor,
        widen: float,
        attention: Callable[[Tensor], Tensor] = lambda scores: scores.softmax(1),
    ) -> Tensor:
        variances = (widen * self.stds) ** 2
        gain = alpha * variances / (alpha**2 * variances + sigma**2)
        share = attention(self._log_joint(x, alpha, sigma, conditions, widen))
        return (share * (1 - alpha * gain)) @ self.means.flatten(1) + (share * gain).sum(1, keepdim=True) * x


LEAST = 1e-6
"""The noise level at which a mixture answers where there is none."""
RANDOM = frozenset({"time", "conditioning", "drop", "shuffle"})
"""The kinds of perturbations that draw."""


def worsened(kind: str, amount: float) -> tuple[float, float]:
    """What `MixtureDenoiser` multiplies the stds and the noise level by under a perturbation that does not draw."""
    if kind in ("widen", "identity", "skip"):
        return 1 + amount, 1.0
    if kind == "blur":
        return 2.0 if math.isinf(amount) else 1 + amount / (1 + amount), 1.0
    return 1.0, math.exp(amount / 5) if kind == "shift" else 1.0


@dataclass(frozen=True, eq=False)
class MixtureDenoiser:
    """A mixture as a network: ``model(x, level, conditions)``.

    Args:
        mixture: the data.
        parameterization: what the network emits.
        widen: factor on the mixture's stds: other than 1 for a worse network.

    It can be perturbed, for one evaluation, by the kinds of a pipeline's networks (see `Perturbation`), each of which
    makes it worse in a way that has a closed form: ``"widen"``, ``"identity"`` and ``"skip"`` multiply the stds by
    ``1 + amount``, ``"blur"`` by ``1 + amount/(1 + amount)``, at infinity 2; ``"shift"`` lets it believe in a noise
    level of ``exp(amount/5)`` times the true one, ``"time"`` and ``"conditioning"`` of ``exp(amount * n)`` times,
    ``"drop"`` and ``"shuffle"`` of ``exp((2 + amount) * n)`` times, n a normal number for each sample.

    Its own pass can be edited as if it had attention to the text: over its components, by their responsibilities. What
    that attention puts out is the posterior mean, a token of which has the numbers at one place of x. Tokens are alike
    for ``"tome"`` as those of x are.
    """

    mixture: GaussianMixture
    parameterization: Parameterization = EPSILON
    widen: float = 1.0
    edits = frozenset({"nag", "nasa", "pladis", "tome"})
    perturbations = frozenset({"widen", "identity", "skip", "blur", "shift"}) | RANDOM

    def __call__(
        self,
        x: Tensor,
        level: Level,
        conditions: Tensor,
        /,
        perturbation: Perturbation | None = None,
        generators: Sequence[torch.Generator] = (),
        edits: Sequence[PromptEdit] = (),
        carried: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """The native output for x, shape ``(B, ...)``, in the type of x; computed in the mixture's type.

        Without noise it answers as with next to none, as a network does, where noise follows from no clean sample.
        """
        level = level if level.sigma else replace(level, sigma=LEAST)
        wide = x.to(self.mixture.means.dtype)
        conditions = conditions.to(wide.dtype)
        kind, amount = (perturbation.kind, perturbation.amount) if perturbation else ("", 0.0)
        wider, noisier = worsened(kind, amount)
        widen = self.widen * wider
        if kind == "shift" or kind in RANDOM:
            away: float | Tensor = noisier
            if kind in RANDOM:
                drawn = [torch.randn((), generator=one, dtype=torch.float32) for one in generators]
                spread = amount + 2 * (kind in ("drop", "shuffle"))
                away = (spread * torch.stack(drawn).to(wide)).exp().unsqueeze(1)
            at: tuple[Tensor, float, float | Tensor] = (wide / level.alpha, 1.0, level.k_sigma * away)
        else:
            at = (wide, level.alpha, level.sigma)
        denoised = self._attended(*at, conditions, widen, edits, carried or {})
        return convert(denoised, wide, level, X0, self.parameterization).to(x.dtype)

    def _attended(
        self,
        x: Tensor,
        alpha: float,
        sigma: float | Tensor,
        conditions: Tensor,
        widen: float,
        edits: Sequence[PromptEdit],
        carried: Mapping[str, Tensor],
    ) -> Tensor:
        """The posterior mean under edits of the attention."""
        blends = {"nag": normalized, "nasa": steered}
        sparse = next((edit.values for edit in edits if edit.kind == "pladis"), None)

        def attention(scores: Tensor) -> Tensor:
            return scores.softmax(1) if sparse is None else beyond(scores, sparse)

        def answer(weights: Tensor) -> Tensor:
            return self.mixture._denoised(x.flatten(1), alpha, sigma, weights, widen, attention).reshape(x.shape)

        denoised = answer(conditions)
        for edit in edits:
            if edit.kind in blends:
                other = answer(carried[edit.text].to(x.dtype))
                denoised = blends[edit.kind](denoised, other, edit.values, (1,))
            elif edit.kind == "tome" and (groups := grouped(x.flatten(2).mT, carried["tome"], edit.values[0])):
                tokens = groups.merged(denoised.flatten(2).mT, average=bool(edit.values[1]))
                denoised = groups.unmerged(tokens).mT.reshape(x.shape)
        return denoised


class Gaussian1D:
    r"""The smallest oracle, for doctests: :math:`p(x_0 \mid \mathrm{positive}) = N(0, 1)`, all data :math:`N(0, 2)`.

    At a noise level sigma (VE) the denoisers are ``x / (1 + sigma^2)`` and ``2x / (2 + sigma^2)``. Under CFG of scale w
    from infinite noise, DDIM ends with variance ``2^(1-w)``.
    """

    variances: ClassVar[dict[str, float]] = {"positive": 1.0, "null": 2.0, "negative": 2.0}

    def denoised(self, condition: Literal["positive", "null", "negative"], x: float, sigma: float) -> float:
        """Return the posterior mean of one number x at the noise level sigma (VE)."""
        variance = self.variances[condition]
        return variance * x / (variance + sigma**2)


gaussian_1d = Gaussian1D()
