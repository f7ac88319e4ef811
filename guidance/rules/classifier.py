"""Classifier guidance (Dhariwal & Nichol 2021)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ..fields import choice, number
from ..notation.registry import register
from ..objective import Bound
from ..prediction import Level
from ..steering import Shifting, along, check_schedule, gradient_at, posterior_variance, preserving, scaling
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
    example="classifier(0.5, 'blue')",
)
@dataclass(frozen=True)
class ClassifierGuidance(Shifting):
    r"""Classifier guidance: move along the gradient of a log-probability that is not taken through the denoiser.

    .. math::
        \text{noise:}\quad \tilde\epsilon = \hat\epsilon - s\,\sigma\,\nabla_{x_t} \log p(y \mid x_t), \qquad
        \text{mean:}\quad \tilde\mu = \hat\mu + s\,\Sigma_t \nabla_{x_t} \log p(y \mid x_t), \qquad
        \text{product:}\quad \tilde\mu = \hat\mu + s\,\Sigma_t \nabla \log r_{t-1}(\hat\mu)

    with the mean and the variance of a DDPM step's posterior,
    :math:`\Sigma_t = \frac{\sigma'^2}{\sigma^2}\big(1 - \frac{\bar\alpha_t}{\bar\alpha_{t-1}}\big)`.
    The first form changes the estimate that the sampler steps with. The others move the sample after the step: the
    clean sample moves by :math:`s\,\Sigma_t\nabla\log p / \sqrt{\bar\alpha_{t-1}}` and its noise stays. The forms agree
    to first order in the step's length; with few steps take the first.

    With the exact classifier of all data it is CFG: on the unconditional model of scale s, on the prompt's of 1 + s.

    The third is the product of Sohl-Dickstein et al.: each step's kernel is multiplied by a function r of the sample
    that the step leads to, and the product of a Gaussian of small variance with it is the Gaussian moved so. With
    :math:`r_t(x) = p(y \mid x_t)` and many steps the samples are those of the exact posterior.

    Args:
        scale: s, any number up to 1e6 in size; 0 is off. The paper takes 1 for class-conditional models and 10 for
            unconditional ones.
        objective: the text of the objective. One whose `space` is "noisy" is the log-probability of a classifier that
            was trained on noise, and is asked at the sample, ``log p(y | x_t)`` of ``(x, level)``; in the form of the
            product at the mean of the step and the level that it leads to. Any other is asked at the predicted clean
            sample, and its gradient there stands for that at the sample, as in EluCD; for it the second and the third
            form are the same.
        form: ``"noise"``, ``"mean"`` or ``"product"``.

    Queries: none of its own, and no gradient goes through the denoiser; the objective is evaluated once a step, with
    its gradient.

    State: none. All symbols are those of the variance-preserving scaling of x, whatever the scheduler's own. Trace
    ``log_f``. The second form and the third need the schedule beforehand, as `guide` and `sample` have it.

    References:
        Dhariwal & Nichol, "Diffusion Models Beat GANs on Image Synthesis", arXiv:2105.05233, Algorithms 2 and 1.
        Sohl-Dickstein et al., "Deep Unsupervised Learning using Nonequilibrium Thermodynamics", arXiv:1503.03585,
        section 2.5.

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
        choice(self, "form", ("noise", "mean", "product"))

    @property
    def stands_last(self) -> bool:
        """Whether no rule that changes the estimate may follow: true of the forms that move the sample."""
        return self.form != "noise"

    def init(self, run: Run) -> State:
        """Look up the objective and check that the rule can use it; the rule has no state.

        Raises:
            InputError: there is no such objective.
            RuleError: the objective has no gradient, or the form needs a schedule that this loop does not tell.
            UnsupportedError: the loop hands rules no objectives.
        """
        if self.form != "noise":
            check_schedule(self, run, f"form={self.form!r} {{}}; take form='noise'")
        return super().init(run)

    def steered(self, estimate: Estimate, objective: Bound, step: Step) -> Estimate:
        """Return the estimate with its noise, or its clean sample, moved along the gradient."""
        if self.form == "noise":
            value, slope = gradient_at(objective, estimate.prediction, step.level)
            return estimate.plus("noise", slope, -self.scale * preserving(step.level)[1], log_f=value)
        variance, after = posterior_variance(step), step.run.levels[step.index + 1]
        if self.form == "mean" or objective.space != "noisy":
            value, slope = gradient_at(objective, estimate.prediction, step.level)
        elif not variance:
            return estimate  # the last step leads to its mean, where a classifier of noisy samples may know nothing
        else:
            value, slope = objective.gradient(scaling(after) * _mean(estimate, step, after), after)
            slope = scaling(after) * slope
        return along(estimate, self.scale * variance / preserving(after)[0] * slope, log_f=value)


def _mean(estimate: Estimate, step: Step, after: Level) -> Tensor:
    """The mean of the posterior of a DDPM step, in the papers' scaling."""
    (alpha, sigma), (alpha_after, sigma_after) = preserving(step.level), preserving(after)
    kept = alpha / alpha_after * (sigma_after / sigma) ** 2
    x0, x = estimate.read("denoised"), estimate.prediction.x / scaling(step.level)
    return (alpha_after - kept * alpha) * x0 + kept * x
