"""Classifier guidance (Dhariwal & Nichol 2021)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ..errors import RuleError
from ..fields import choice, number
from ..notation.registry import register
from ..objective import Bound
from ..prediction import Level
from ..steering import Steering, along, preserving
from ..step import Estimate, Run, State, Step

DHARIWAL_2021 = """@inproceedings{dhariwal2021diffusion,
  title     = {Diffusion Models Beat {GANs} on Image Synthesis},
  author    = {Dhariwal, Prafulla and Nichol, Alexander},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2021},
  note      = {arXiv:2105.05233}
}"""
SOHL_DICKSTEIN_2015 = """@inproceedings{sohldickstein2015deep,
  title     = {Deep Unsupervised Learning using Nonequilibrium Thermodynamics},
  author    = {Sohl-Dickstein, Jascha and Weiss, Eric A. and Maheswaranathan, Niru and Ganguli, Surya},
  booktitle = {International Conference on Machine Learning},
  year      = {2015},
  note      = {arXiv:1503.03585}
}"""


@register(
    "classifier",
    references=(DHARIWAL_2021, SOHL_DICKSTEIN_2015),
    cost="0 more",
    example="classifier(0.5, 'blue')",
)
@dataclass(frozen=True)
class ClassifierGuidance(Steering):
    r"""Classifier guidance: along the gradient of a log-probability, which does not go through the denoiser.

    .. math::
        \text{noise:}\quad \tilde\epsilon = \hat\epsilon - s\,\sigma\,\nabla_{x_t} \log p(y \mid x_t), \qquad
        \text{mean:}\quad \tilde\mu = \hat\mu + s\,\Sigma_t \nabla_{x_t} \log p(y \mid x_t)

    with the variance :math:`\Sigma_t = \frac{\sigma'^2}{\sigma^2}\big(1 - \frac{\bar\alpha_t}{\bar\alpha_{t-1}}\big)`
    of a DDPM step's posterior. The first changes the estimate, and a sampler is told of it; the second moves the sample
    behind the step, as the clean sample moved by :math:`s\,\Sigma_t\nabla\log p / \sqrt{\bar\alpha_{t-1}}` with
    its noise kept. They agree to the order of a step; with few steps take the first.

    With the exact classifier of all data it is CFG: on the unconditional model of scale s, on the prompt's of 1 + s.
    The second form multiplies each step's kernel by a function, as Sohl-Dickstein et al. do to sample products.

    Args:
        scale: s, any number up to 1e6 in size; 0 is off. The paper takes 1 for class-conditional models and 10 for
            unconditional ones.
        objective: the text of the objective. One whose `space` is "noisy" is the log-probability of a classifier that
            was trained on noise, and is asked at the sample, ``log p(y | x_t)`` of ``(x, level)``. Any other is asked
            at the predicted clean sample, and its gradient there stands for that at the sample, as in EluCD.
        form: ``"noise"`` or ``"mean"``.

    Queries: none of its own, and no gradient goes through the denoiser; the objective is evaluated once a step, with
    its gradient.

    State: none. All symbols are those of the variance-preserving scaling of x, whatever the scheduler's own. Trace
    ``log_f``. The second form needs the schedule beforehand, as `guide` and `sample` have it.

    References:
        Dhariwal & Nichol, "Diffusion Models Beat GANs on Image Synthesis", arXiv:2105.05233, Algorithms 2 and 1.
        Sohl-Dickstein et al., arXiv:1503.03585, section 2.5.

    >>> from guidestack import ClassifierGuidance
    >>> print(ClassifierGuidance(2, "imagenet(207)"))
    classifier(2, 'imagenet(207)')
    """

    space: ClassVar[Any] = "noise"
    neutral_values: ClassVar[Mapping[str, Any] | None] = {"scale": 0.0}

    scale: float
    objective: str
    form: str = "noise"

    def __post_init__(self) -> None:
        super().__post_init__()
        number(self, "scale")
        choice(self, "form", ("noise", "mean"))

    @property
    def renoises(self) -> bool:
        """Whether the rule keeps the noise of the rules before it: in the form of the mean."""
        return self.form == "mean" and not self.off

    @property
    def stands_last(self) -> bool:
        """Whether no rule that changes the estimate may stand behind it: in the form of the mean."""
        return self.form == "mean"

    @property
    def guides(self) -> bool:
        """Whether the rule changes where the sampler jumps."""
        return not self.off

    def init(self, run: Run) -> State:
        """Nothing is remembered; the objective is looked up.

        Raises:
            InputError: there is no such objective.
            RuleError: the objective has no gradient, or the form needs a schedule that this loop does not tell.
            UnsupportedError: the loop hands rules no objectives.
        """
        if self.form == "mean" and run.objectives is not None and len(run.levels) < 2:
            raise RuleError(f"{self}: form='mean' needs the schedule, which this loop does not tell; take form='noise'")
        return super().init(run)

    def steered(self, estimate: Estimate, objective: Bound, step: Step) -> Estimate:
        """The estimate with its noise or its clean sample moved along the gradient."""
        size = step.level.alpha / preserving(step.level)[0] if step.level.alpha else step.level.sigma
        if objective.space == "noisy":
            value, slope = objective.gradient(estimate.prediction.x, step.level)
            slope = slope * size  # x is that of the papers times this
        else:
            value, slope = objective.gradient(estimate.read("denoised"))
        if self.form == "mean":
            return along(estimate, self.scale * _variance(step) / preserving(_after(step))[0] * slope, log_f=value)
        return estimate.plus("noise", slope, -self.scale * preserving(step.level)[1], log_f=value)


def _after(step: Step) -> Level:
    return step.run.levels[step.index + 1]


def _variance(step: Step) -> float:
    """The variance of the posterior of a DDPM step; 0 at the last one."""
    (alpha, sigma), (alpha_after, sigma_after) = preserving(step.level), preserving(_after(step))
    return sigma_after**2 / sigma**2 * (1 - alpha**2 / alpha_after**2)
