"""RED-diff as a rule: an optimizer of the clean sample, from which the sampler's x is drawn (Mardani et al. 2023)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ..errors import RuleError, UnsupportedError
from ..fields import choice, number
from ..notation.registry import register
from ..objective import Bound
from ..prediction import Level, wide
from ..query import Predictions
from ..steering import Steering
from ..step import Estimate, Run, Step
from ..turn import Sight

MARDANI_2024 = """@inproceedings{mardani2024variational,
  title     = {A Variational Perspective on Solving Inverse Problems with Diffusion Models},
  author    = {Mardani, Morteza and Song, Jiaming and Kautz, Jan and Vahdat, Arash},
  booktitle = {International Conference on Learning Representations},
  year      = {2024},
  note      = {arXiv:2305.04391}
}"""
WEIGHTS: dict[str, Callable[[float], float]] = {
    "linear": lambda k: k,
    "sqrt": lambda k: k**0.5,
    "square": lambda k: k * k,
    "constant": lambda k: 1.0,
}
r""":math:`\omega(\sigma/\alpha)` by name."""
BETAS = (0.9, 0.99)
"""The authors' betas of Adam."""
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": partial(torch.optim.Adam, betas=BETAS),
    "adamw": partial(torch.optim.AdamW, betas=BETAS),
    "rmsprop": torch.optim.RMSprop,
    "sgd": torch.optim.SGD,
}
"""Element-wise optimizers: one optimizer of a batch gives each sample what one of its own would."""


def omega(over: str, level: Level) -> float:
    r"""Return the weight :math:`\omega` of a noise level; at an infinite level it is that of 1e6."""
    return WEIGHTS[over](min(level.k_sigma, 1e6))


class Fitted(NamedTuple):
    r"""What `REDDiff` remembers.

    Attributes:
        mean: :math:`\mu`, shape ``(B, ...)``; None before the first evaluation.
        memory: what the optimizer remembers, by name.
    """

    mean: Tensor | None = None
    memory: tuple[tuple[str, Tensor], ...] = ()


@register("red_diff", references=(MARDANI_2024,), example="red_diff('border')")
@dataclass(frozen=True)
class REDDiff(Steering):
    r"""RED-diff: an optimizer in place of the sampler's steps, for inverse problems.

    It optimizes the clean sample :math:`\mu` so that it fits its measurements and so that the network, at one noise
    level after the other, predicts exactly the noise that was added to it. The rules before it make the estimate
    :math:`\hat x_0` with its noise :math:`\hat\epsilon` at :math:`x = \alpha\mu + \sigma\epsilon` with fresh noise
    :math:`\epsilon`, and each step is a step of the optimizer on

    .. math:: -\log f(\mu) + \lambda\,\omega(\sigma/\alpha)\,\langle \mathrm{sg}(\hat\epsilon - \epsilon),\ \mu\rangle
              \qquad\text{with the gradient}\qquad
              -\nabla\log f(\mu) + \lambda\,\frac{\omega(k)}{k}\,(\mu - \hat x_0),\quad k = \sigma/\alpha

    where sg stops the gradient: none goes through the network. The sampler steps with :math:`\mu`, the next x is drawn
    from it, and the run ends with it. The result is a mode of the posterior, not a sample of it.

    :math:`\mu` begins with the estimate at the first x: of pure noise that is the model's mean picture; in
    image-to-image it is nearly the given picture.

    Args:
        objective: the text of the objective that is log f, such as ``"known"`` or ``"superres(4)"``; it has a gradient
            and sees clean samples, or pictures of them by the pipeline's decoder.
        weight: :math:`\lambda`, from 0 to 1e6.
        lr: the optimizer's learning rate, above 0 and at most 1e6, in the unit of clean samples.
        over: :math:`\omega` of the noise level k: ``"linear"``, k; ``"sqrt"``, ``"square"`` or ``"constant"``.
        optimizer: ``"adam"``, that of the authors, or ``"adamw"``, both with betas of 0.9 and 0.99; ``"rmsprop"`` or
            ``"sgd"``. `samplers.red_diff` takes any optimizer of torch and any start.

    Queries: none of its own, and no gradient through the denoiser. The objective and its gradient once a step, with a
    pass of the decoder where it sees pictures.

    State: :math:`\mu` and what the optimizer remembers, for Adam three samples in all. The noise comes from generators
    keyed by (seed, step, evaluation, turn, "red_diff"). Space: denoised. Samplers that evaluate once a step and
    remember nothing; their levels are used, their steps are not. No rule may follow it, and none beside it may take
    turns or re-noise, as `CFGPlusPlus` does.

    Traces: ``log_f``, at :math:`\mu` as it is when the step begins.

    Differs from the paper, whose code takes means over the measurements and over the sample in place of sums, has
    pictures with values in [-1, 1], and begins with the pseudo-inverse of the measurements.

    References:
        Mardani et al., "A Variational Perspective on Solving Inverse Problems with Diffusion Models", arXiv:2305.04391.

    >>> from guidestack import CFG, REDDiff
    >>> print(CFG(2) | REDDiff("known", lr=0.05))
    cfg(2) | red_diff('known', lr=0.05)
    """

    space: ClassVar[Any] = "denoised"
    neutral_values: ClassVar[Mapping[str, Any] | None] = None
    redraws: ClassVar[bool] = True

    objective: str
    weight: float = 0.25
    lr: float = 0.1
    over: str = "linear"
    optimizer: str = "adam"

    def __post_init__(self) -> None:
        super().__post_init__()
        number(self, "weight", 0.0)
        if number(self, "lr", 0.0) == 0:
            raise RuleError("REDDiff: lr must be above 0, got 0")
        choice(self, "over", tuple(WEIGHTS))
        choice(self, "optimizer", tuple(OPTIMIZERS))

    @property
    def stands_last(self) -> bool:
        """True: the optimizer moves the clean sample towards the finished estimate, which no later rule may change."""
        return True

    @property
    def takes_turns(self) -> bool:
        """True: x is drawn anew before each evaluation but the first."""
        return True

    def init(self, run: Run) -> Fitted:
        """Look up the objective, and return the state before the first step, in which nothing is optimized yet.

        Raises:
            InputError, RuleError, UnsupportedError: as in `Steering`, or the objective sees noisy samples.
        """
        super().init(run)
        return Fitted()

    def check_objective(self, objective: Bound) -> None:
        """Check that an objective has a gradient and is a function of clean samples.

        Raises:
            RuleError: it has no gradient.
            UnsupportedError: it sees noisy samples.
        """
        super().check_objective(objective)
        if objective.space == "noisy":
            raise UnsupportedError(
                f"{self}: the objective {objective.name!r} sees noisy samples, and this gives it clean ones"
            )

    def turns(self, step: Step, state: Fitted) -> int:
        """Return the number of turns: one before each evaluation but the first, in which nothing is evaluated."""
        return int(state.mean is not None)

    def turn(self, x: Tensor, sight: Sight, step: Step, state: Fitted) -> tuple[Tensor, Fitted]:
        """Return the optimized clean sample with fresh noise of the step's level."""
        assert state.mean is not None  # else there is no turn
        return step.level.noised(state.mean, sight.noise(x, "red_diff")), state

    def update(  # type: ignore[override]
        self, estimate: Estimate, predictions: Predictions, step: Step, state: Fitted
    ) -> tuple[Estimate, Fitted]:
        """Take a step of the optimizer and return its clean sample; without objectives, return the estimate."""
        if step.run.objectives is None:
            return estimate, state
        x0 = estimate.prediction.denoised
        told = x0.to(wide(x0.dtype))
        mean = told if state.mean is None else state.mean
        value, slope = step.run.objectives.find(self.objective).gradient(mean)
        pull = self.weight * omega(self.over, step.level) / min(step.level.k_sigma, 1e6)
        mean, memory = self._stepped(mean, pull * (mean - told) - slope, state.memory)
        moved = Estimate(estimate.prediction, None, estimate.traces).replace("denoised", mean.to(x0.dtype), log_f=value)
        return moved, Fitted(mean, memory)

    def ended(self, x: Tensor, step: Step, state: Fitted) -> Tensor:
        """Return the optimized clean sample, with which the run ends.

        Raises:
            UnsupportedError: the pipeline hands its scheduler samples in another form than its denoiser.
        """
        if state.mean is None:
            return x
        if x.shape != state.mean.shape:
            raise UnsupportedError(
                f"{self}: the sampler has samples of shape {tuple(x.shape)}, not {tuple(state.mean.shape)}"
            )
        return state.mean

    def _stepped(
        self, mean: Tensor, gradient: Tensor, memory: tuple[tuple[str, Tensor], ...]
    ) -> tuple[Tensor, tuple[tuple[str, Tensor], ...]]:
        """Take one step of the optimizer, which is constructed for this step from the remembered state."""
        leaf = mean.detach().clone().requires_grad_()
        leaf.grad = gradient
        made = OPTIMIZERS[self.optimizer]([leaf], lr=self.lr)
        made.state[leaf] = {name: value.clone() for name, value in memory}
        made.step()
        held = {name: value for name, value in made.state[leaf].items() if isinstance(value, Tensor)}
        return leaf.detach(), tuple(sorted(held.items()))
