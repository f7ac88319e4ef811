"""Plug & play generative networks (Nguyen et al. 2017): Langevin steps towards an objective at each noise level."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ..fields import SMALLEST, number, whole
from ..move import Move
from ..notation.registry import register
from ..steering import Steering, gradient_at, preserving
from ..step import State, Step
from ..turn import Look, Sight

NGUYEN_2017 = """@inproceedings{nguyen2017plug,
  title     = {Plug \\& Play Generative Networks: Conditional Iterative Generation of Images in Latent Space},
  author    = {Nguyen, Anh and Clune, Jeff and Bengio, Yoshua and Dosovitskiy, Alexey and Yosinski, Jason},
  booktitle = {IEEE Conference on Computer Vision and Pattern Recognition},
  year      = {2017},
  note      = {arXiv:1612.00005}
}"""


@register("ppgn", references=(NGUYEN_2017,), example="cfg(3) | ppgn('blue', condition=0.01)")
@dataclass(frozen=True)
class PPGN(Move, Steering):
    r"""PPGN: before each sampler step, noisy steps towards the denoised sample and along an objective's gradient.

    .. math::
        x \leftarrow x + \epsilon_1\,(\alpha\hat x_0(x) - x) + \epsilon_2\,\sigma^2\,\nabla_x \log p(y \mid x)
        + \epsilon_3\,\sigma z

    with fresh noise z at one noise level. The first term is :math:`\epsilon_1 \sigma^2` times the score of the law at
    the level, which is the one whose score the stack's estimate is. With :math:`\epsilon_2 = \epsilon_1`,
    :math:`\epsilon_3 = \sqrt{2\epsilon_1}` small and exact networks the stationary law of these Langevin steps is the
    posterior :math:`p_\sigma(x)\,p(y \mid x)`; with :math:`\epsilon_2 = s\,\epsilon_1` it is
    :math:`p_\sigma(x)\,p(y \mid x)^s`. Any objective can be the condition, without another generator.

    Args:
        objective: the text of the objective: the condition network. One that sees noisy samples is evaluated at x, any
            other at the predicted clean sample, as in `ClassifierGuidance`.
        steps: such steps before each step of the sampler but the first; 0 is off.
        prior: :math:`\epsilon_1`, above 0 and at most 1, in units of the level: 1 goes to the denoised sample at once.
        condition: :math:`\epsilon_2`, any number up to 1e6 in size; None for that of the posterior,
            :math:`\epsilon_1`.
        noise: :math:`\epsilon_3`, from 0 to 10; None for the consistent one, which is
            :math:`\sqrt{1 - (1 - \epsilon_1)^2}`: for small :math:`\epsilon_1` the above, and for any the one that
            keeps the variance of the level where the denoised sample stays as it is.

    Queries: those of the stack for each of these steps, on top of the sampler's own evaluation; the objective is
    evaluated once for each, with its gradient, which does not go through the denoiser.

    State: none. Space: noise. Samplers that evaluate once a step and remember nothing. There is no step at the first
    level, which holds the sampler's own noise, nor at the last, which has none.

    Differs from Nguyen et al.: they step at one level, in the latent space of a generator whose prior is a denoising
    autoencoder's; here the prior is the diffusion model, and the steps stand between those of a sampler.

    References:
        Nguyen, Clune, Bengio, Dosovitskiy & Yosinski, "Plug & Play Generative Networks: Conditional Iterative
        Generation of Images in Latent Space", arXiv:1612.00005, with its three weights.

    >>> from guidestack import CFG, PPGN
    >>> print(CFG(3) | PPGN("blue", steps=2))
    cfg(3) | ppgn('blue', steps=2)
    """

    space: ClassVar[Any] = "noise"
    neutral_values: ClassVar[Mapping[str, Any] | None] = {"steps": 0}

    objective: str
    steps: int = 1
    prior: float = 0.1
    condition: float | None = None
    noise: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        whole(self, "steps", 0)
        number(self, "prior", SMALLEST, 1.0)
        if self.condition is not None:
            number(self, "condition")
        if self.noise is not None:
            number(self, "noise", 0, 10.0)

    @property
    def takes_turns(self) -> bool:
        """Whether the rule takes steps of its own: whether `steps` is above 0."""
        return not self.off

    def turns(self, step: Step, state: State) -> int:
        """Return the number of turns: one for each of `steps`, none at a run's first and last level."""
        return self.steps if step.before is not None and step.level.sigma > 0 else 0

    def look(self, x: Tensor, step: Step, state: State) -> Look:
        """Ask for the stack's estimate at x."""
        return Look(guided=True)

    def turn(self, x: Tensor, sight: Sight, step: Step, state: State) -> tuple[Tensor, State]:
        """Take one Langevin step towards the denoised sample and along the objective's gradient."""
        if step.run.objectives is None:  # a plan, in which the samples are moved too: what follows is evaluated anew
            return x.clone(), state
        objective, sigma = step.run.objectives.find(self.objective), step.level.sigma
        prediction = sight.estimate.prediction
        _, slope = gradient_at(objective, prediction, step.level)
        condition = self.prior if self.condition is None else self.condition
        noise = math.sqrt(1 - (1 - self.prior) ** 2) if self.noise is None else self.noise
        # alpha x0 - x = -sigma eps. In this scaling of x, sigma^2 times the gradient is sigma times that of the papers
        # times their sigma.
        moved = x - self.prior * sigma * prediction.noise + condition * sigma * preserving(step.level)[1] * slope
        return moved + noise * sigma * sight.noise(x, "ppgn"), state
