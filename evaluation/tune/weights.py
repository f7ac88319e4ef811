"""The hyper-parameter search of training-free guidance (Ye et al. 2024): by beam, one weight larger at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ...guidance.fields import parameters
from ...guidance.rule import Rule

FACTORS = {"rho": (2.0, 8.0), "mu": (2.0, 8.0), "smoothing": (10.0, 1.0)}
"""What each weight is multiplied by at a time, and the most that it becomes."""
KEPT, ROUNDS = 2, 6


@dataclass(frozen=True, order=True)
class Weights:
    """The weights that are searched, parameters of `TFG` and of rules like it. The defaults are where a search begins.

    Args:
        rho: of the gradient through the denoiser.
        mu: of the gradient at the clean sample.
        smoothing: standard deviation of the noise over which the likelihood is averaged.
    """

    rho: float = 0.25
    mu: float = 0.25
    smoothing: float = 0.001

    @staticmethod
    def are_of(rule: Rule) -> bool:
        """Whether a rule has these weights."""
        return set(FACTORS) <= {field.name for field in parameters(rule)}

    def of(self, rule: Rule) -> Rule:
        """A rule that has them, with these weights."""
        return replace(rule, rho=self.rho, mu=self.mu, smoothing=self.smoothing)  # type: ignore[type-var]  # rules are dataclasses

    def larger(self) -> list[Weights]:
        """Up to three other weights: in each, one of these is multiplied by its factor, up to its most."""
        found = {
            name: min(factor * getattr(self, name), most)
            for name, (factor, most) in FACTORS.items()
            if getattr(self, name) < most
        }
        return [replace(self, **{name: value}) for name, value in found.items()]


Score = Callable[[Sequence[Weights]], Sequence[float]]
"""How good some weights are, the larger the better; NaN where they are of no use."""


def beam(score: Score, budget: int, start: Weights | None = None) -> list[tuple[Weights, float]]:
    """Search the weights of training-free guidance as its authors do.

    From the start, the `KEPT` best so far are tried with each of their weights larger, `ROUNDS` times at most, until
    none of what is new is among the best. Nothing is drawn at random: the same scores lead to the same weights.

    Args:
        score: makes and measures; asked once for each weights.
        budget: how many to try at most, from 1.
        start: where to begin.

    Returns:
        Weights with their scores, the best first; of equal ones that which was tried first.

    References:
        Ye et al., arXiv:2409.15761, in its official code: factors 2, 2 and 10, at most 8, 8 and 1, the two best, six
        rounds. The number of inner steps and of recurrences is fixed beforehand.

    >>> best, value = beam(lambda some: [1 - abs(one.rho - 1) - abs(one.mu - 0.5) for one in some], 30)[0]
    >>> best.rho, best.mu, value
    (1.0, 0.5, 1.0)
    """
    first = start or Weights()
    found = {first: _known(score([first])[0])}
    kept: list[Weights] = []
    for _ in range(ROUNDS):
        best = _ranked(found)[:KEPT]
        if best == kept:
            break
        kept = best
        fresh = [one for one in dict.fromkeys(more for one in kept for more in one.larger()) if one not in found]
        fresh = fresh[: budget - len(found)]
        if not fresh:
            break
        found.update(zip(fresh, map(_known, score(fresh)), strict=True))
    return [(one, found[one]) for one in _ranked(found)]


def _ranked(found: dict[Weights, float]) -> list[Weights]:
    return sorted(found, key=lambda one: -found[one])


def _known(value: float) -> float:
    return -math.inf if math.isnan(value) else float(value)
