"""Steering: the base class of rules that steer by the gradient of an objective."""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor

from .errors import RuleError, UnsupportedError
from .fields import set_field
from .objective import Bound, check_text
from .prediction import Level, Prediction
from .query import Predictions
from .rule import Rule, at_neutral
from .step import Estimate, Run, State, Step

OVER = ("increase", "decrease", "constant")
"""How a weight changes over the steps of a run."""


def check_objectives(rule: Rule, run: Run) -> None:
    """Look up the objectives of a rule, so that one that is wrong is refused before the run.

    Raises:
        InputError: there is no such objective, or what it was given is not of the size of the run's pictures.
        RuleError: the rule cannot use it.
        UnsupportedError: the loop hands rules no objectives.
    """
    if run.objectives is not None:
        for text in rule.objectives:
            objective = run.objectives.find(text)
            rule.check_objective(objective)
            objective.check_size()
    elif run.identity is not None:  # not a plan
        raise UnsupportedError(
            f"{rule} steers by an objective, and this loop hands rules none; use guidestack.guide or guidestack.sample"
        )


def check_schedule(rule: Rule, run: Run, needs: str) -> None:
    """Refuse a run whose levels are not known beforehand, for a rule that needs them.

    Args:
        rule: the rule.
        run: what is known of the run.
        needs: what of the rule needs them, and what to take in its place.

    Raises:
        RuleError: they are not known.
    """
    if run.objectives is not None and len(run.levels) < 2:
        raise RuleError(f"{rule}: {needs.format('needs the schedule, which this loop does not give')}")


class Steering(Rule):
    """Base class of rules that steer by one objective, without network evaluations of their own.

    A subclass is a frozen dataclass that declares `objective` and implements `steered`. At its neutral values it leaves
    the estimate as it is, to the bit.
    """

    objective: str

    def __post_init__(self) -> None:
        set_field(self, "objective", check_text(self.objective))

    @property
    def off(self) -> bool:
        """Whether the rule does nothing: its parameters are at their neutral values."""
        return at_neutral(self)

    @property
    def guides(self) -> bool:
        """Whether the rule changes the estimate: it does where it is not off."""
        return not self.off

    @property
    def objectives(self) -> tuple[str, ...]:
        """The text of the rule's objective, as a tuple of one."""
        return (self.objective,)

    def init(self, run: Run) -> State:
        """Look up the objective, so that a wrong one is refused before the run; the rule has no state.

        Raises:
            InputError: there is no such objective, or what it was given is not of the size of the run's pictures.
            RuleError: the objective has no gradient.
            UnsupportedError: the loop hands rules no objectives.
        """
        check_objectives(self, run)
        return ()

    def check_objective(self, objective: Bound) -> None:
        """Check that the rule can use an objective: that the objective has a gradient.

        Raises:
            RuleError: it has none.
        """
        objective.need_gradient(self)

    def update(self, estimate: Estimate, predictions: Predictions, step: Step, state: State) -> tuple[Estimate, State]:
        """Return what `steered` makes of the estimate, or the estimate where the rule does nothing and in a plan."""
        if self.off or step.run.objectives is None:
            return estimate, state
        return self.steered(estimate, step.run.objectives.find(self.objective), step), state

    def steered(self, estimate: Estimate, objective: Bound, step: Step) -> Estimate:
        """Return the estimate moved along the gradient of the objective."""
        raise NotImplementedError


class Shifting(Steering):
    """Base class of rules that move the clean sample along an objective's gradient and keep the noise; see `along`."""

    @property
    def stands_last(self) -> bool:
        """True: the gradient is taken of the finished estimate, so that no rule that changes it may follow."""
        return True

    @property
    def renoises(self) -> bool:
        """Whether the rule sets what the sampler re-noises with: it does where it is not off, with the noise so far."""
        return self.stands_last and not self.off


def preserving(level: Level) -> tuple[float, float]:
    """The two numbers of a level in the variance-preserving scaling of x, in which papers count: alpha, sigma."""
    size = scaling(level)
    return level.alpha / size, level.sigma / size


def alpha_ratio(step: Step, index: int) -> float:
    r""":math:`\alpha_t = \bar\alpha_t / \bar\alpha_{t-1}` of the step `index` of a run, whose levels are known."""
    here, after = (preserving(level)[0] ** 2 for level in step.run.levels[index : index + 2])
    return here / after if after else 0.0


def posterior_variance(step: Step, index: int | None = None) -> float:
    r"""The variance :math:`\Sigma_t` of the posterior of a DDPM step, in the papers' scaling; 0 at the last step.

    .. math:: \Sigma_t = \frac{\sigma'^2}{\sigma^2} \Big(1 - \frac{\bar\alpha_t}{\bar\alpha_{t-1}}\Big)

    Args:
        step: where a run stands whose levels are known.
        index: of another step of that run; None for the one where it stands.
    """
    here = step.level if index is None else step.run.levels[index]
    after = step.run.levels[(step.index if index is None else index) + 1]
    (alpha, sigma), (alpha_after, sigma_after) = preserving(here), preserving(after)
    return sigma_after**2 / sigma**2 * (1 - alpha**2 / alpha_after**2)


def gradient_at(objective: Bound, prediction: Prediction, level: Level) -> tuple[Tensor, Tensor]:
    r"""``log f``, and the gradient that stands for that of :math:`\log p(y \mid x_t)` in the papers' scaling of x.

    Of an objective that sees noisy samples it is taken at the sample itself. Any other is asked at the predicted clean
    sample, and its gradient there stands for that at the sample, as in EluCD: none goes through the denoiser.

    Args:
        objective: log f.
        prediction: the answer at the sample.
        level: of the sample.
    """
    if objective.space != "noisy":
        return objective.gradient(prediction.read("denoised"))
    value, slope = objective.gradient(prediction.x, level)
    return value, slope * scaling(level)


def scaling(level: Level) -> float:
    """How many times as large x is as in the papers' scaling: the norm of alpha and sigma."""
    return math.hypot(level.alpha, level.sigma)


def over_steps(step: Step, how: Literal["increase", "decrease", "constant"] | str) -> float:
    r"""The weight of a step, of mean 1 over the steps of the schedule.

    Args:
        step: where the run stands.
        how: in proportion to :math:`\alpha_t` (``"increase"``), to :math:`1 - \alpha_t` (``"decrease"``), or 1.

    Raises:
        RuleError: it needs the whole schedule, which is not known beforehand here.
    """
    if how == "constant":
        return 1.0
    steps = len(step.run.levels) - 1
    if steps < 1:
        raise RuleError(f"weights over='{how}' need the schedule, which this loop does not give; take over='constant'")
    ratios = [alpha_ratio(step, index) for index in range(steps)]
    weights = ratios if how == "increase" else [1 - one for one in ratios]
    return weights[step.index] * steps / sum(weights)


def along(estimate: Estimate, change: Tensor, **traces: Tensor) -> Estimate:
    """The estimate with its clean sample moved by `change` and its noise kept, for a sampler that re-noises.

    A DDIM step then adds ``alpha' * change`` to what it would have given, alpha' that of the level it leads to; so does
    every other scheduler, see `samplers.renoise`.
    """
    moved = estimate.plus("denoised", change, 1.0, **traces)
    return Estimate(moved.prediction, estimate.renoise or estimate.prediction, moved.traces)
