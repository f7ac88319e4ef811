"""Langevin steps between the steps of a sampler: a corrector, and with a power PCG (Bradley & Nakkiran 2024)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..fields import SMALLEST, number, set_field, whole
from ..move import Move
from ..notation.registry import register
from ..per_sample import norm, ratio
from ..query import NEGATIVE, POSITIVE, Query
from ..step import State, Step
from ..turn import Look, Sight

SONG_2021 = """@inproceedings{song2021scorebased,
  title     = {Score-Based Generative Modeling through Stochastic Differential Equations},
  author    = {Song, Yang and Sohl-Dickstein, Jascha and Kingma, Diederik P. and Kumar, Abhishek and Ermon, Stefano
               and Poole, Ben},
  booktitle = {International Conference on Learning Representations},
  year      = {2021},
  note      = {arXiv:2011.13456}
}"""
BRADLEY_2024 = """@article{bradley2024classifier,
  title   = {Classifier-Free Guidance is a Predictor-Corrector},
  author  = {Bradley, Arwen and Nakkiran, Preetum},
  journal = {Transactions on Machine Learning Research},
  year    = {2025},
  note    = {arXiv:2408.09000}
}"""


@register("langevin", references=(SONG_2021, BRADLEY_2024), example="cfg(3) | langevin(2)")
@dataclass(frozen=True)
class Langevin(Move):
    r"""Langevin corrector: steps at one noise level, before the sampler's own, that move x towards a target law.

    With :math:`s(x)` the score of that law at the level and z fresh noise, each step is that of the Langevin equation
    over a time e,

    .. math:: x \leftarrow x + \tfrac{e}{2}\, s(x) + \sqrt{e}\, z \qquad (e \to 0)

    taken with the denoised prediction held still, so that no length of e makes it unstable:

    .. math:: x \leftarrow x - (1 - k)\,\sigma\epsilon + \sigma\sqrt{1 - k^2}\, z,\qquad k = e^{-e/(2\sigma^2)}

    where :math:`s = -\epsilon/\sigma`. The law:

    * without `power`, the one whose score the stack's estimate is: of the empty stack that of the prompt, which the
      steps keep; under ``cfg(w)`` the same as with ``power=w``;
    * with `power` :math:`\gamma` it is :math:`p(x \mid c)^{\gamma}\, p(x)^{1-\gamma}` at the level, whatever estimate
      the sampler gets: ``langevin(steps, power=...)`` alone is **PCG**, whose predictor is without guidance. In the
      limit of many sampler steps PCG with one Langevin step and power :math:`2w - 1` is CFG of scale w with the DDPM
      sampler, and with many Langevin steps it samples the :math:`\gamma`-powered law.

    Args:
        steps: Langevin steps before each step of the sampler but the first; 0 is off.
        power: :math:`\gamma`, up to 1e6 in size; 1 is the prompt's own law; None for the score of the stack's estimate.
        snr: r of Song et al., up to 10: e is set for each sample and step so that what the score moves is r times as
            long as the noise, :math:`e/2 = 2\,(r\,|z|/|s|)^2`. None for e by schedule, the variance by which the step
            before lowered the noise: :math:`e = \alpha^2\,(\sigma_0^2/\alpha_0^2 - \sigma^2/\alpha^2)`, which is
            :math:`\beta_t\,dt` of DDPM and :math:`\Delta\sigma^2` of variance exploding samplers.
        against: the query that is p(x), where there is a `power`.

    Queries: in each Langevin step those of the stack, or with a power "positive" and `against`: 2 evaluations, or 1 at
    ``power=1``. They come on top of the sampler's own evaluation. The corrected sample is evaluated anew.

    State: none. Space: noise. Samplers that evaluate once a step and remember nothing.

    Differs from Song et al.: norms are each sample's own, where theirs are means over the batch, and the prediction is
    held over a step as above, which for small e is the same. There is no step at the first level, which holds the
    sampler's own noise, nor at the last, which has none.

    References:
        Song et al., arXiv:2011.13456, predictor-corrector samplers; r = 0.16 for their CIFAR-10 model. Bradley &
        Nakkiran, "Classifier-Free Guidance is a Predictor-Corrector", arXiv:2408.09000, with their equivalence to CFG.

    >>> from guidestack import CFG, Langevin
    >>> print(CFG(3) | Langevin(2))
    cfg(3) | langevin(steps=2)
    """

    space: ClassVar[Any] = "noise"
    neutral_values: ClassVar[Mapping[str, Any] | None] = {"steps": 0}

    steps: int = 1
    power: float | None = None
    snr: float | None = None
    against: Query | str = NEGATIVE

    def __post_init__(self) -> None:
        whole(self, "steps", 0)
        if self.power is not None:
            number(self, "power")
        if self.snr is not None:
            number(self, "snr", SMALLEST, 10.0)
        set_field(self, "against", Query.of(self.against))

    @property
    def takes_turns(self) -> bool:
        """Whether the rule takes Langevin steps: whether `steps` is above 0."""
        return self.steps > 0

    def asks(self) -> frozenset[Query]:
        """Return the queries that the power needs; none without a power."""
        if not self.steps or self.power is None:
            return frozenset()
        return frozenset({POSITIVE}) if self.power == 1 else frozenset({POSITIVE, Query.of(self.against)})

    def queries(self, step: Step, state: State) -> dict[Query, None]:
        """Return no queries: the rule asks in its turns, and not at the sampler's own evaluation."""
        return {}

    def turns(self, step: Step, state: State) -> int:
        """Return the number of turns: one for each Langevin step, none at a run's first and last level."""
        return self.steps if step.before is not None and step.level.sigma > 0 else 0

    def look(self, x: Tensor, step: Step, state: State) -> Look:
        """Ask for the stack's estimate at x, or for the predictions that the power needs."""
        return Look(dict.fromkeys(self.asks()), guided=self.power is None)

    def turn(self, x: Tensor, sight: Sight, step: Step, state: State) -> tuple[Tensor, State]:
        """Take one Langevin step at the level of `step`."""
        eps = self._noise(sight)
        z = sight.noise(x, "langevin")
        k = self._kept(step, eps, z)
        sigma = step.level.sigma
        return x - (1 - k) * sigma * eps + (1 - k * k) ** 0.5 * sigma * z, state

    def _noise(self, sight: Sight) -> Tensor:
        """The score as a noise, ``-sigma * score``."""
        if self.power is None:
            return sight.estimate.prediction.noise
        c = sight.predictions[POSITIVE].noise
        if self.power == 1:
            return c
        u = sight.predictions[Query.of(self.against)].noise
        return u + self.power * (c - u)

    def _kept(self, step: Step, eps: Tensor, z: Tensor) -> float | Tensor:
        """Return k of the equation, for the whole batch or for each sample."""
        if self.snr is not None:
            # |z| / |s| = sigma |z| / |eps|, and e / (2 sigma^2) is free of sigma.
            return torch.exp(-2 * (self.snr * ratio(norm(z), norm(eps))) ** 2)
        assert step.before is not None  # else there is no turn
        e = step.level.alpha**2 * (step.before.k_sigma**2 - step.level.k_sigma**2)
        return math.exp(-max(e, 0.0) / (2 * step.level.sigma**2))
