"""EluCD: guidance by a classifier of clean pictures, off the shelf (Ma et al. 2023)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ..fields import LARGEST, number
from ..notation.registry import register
from ..objective import Bound
from ..steering import Shifting, along, check_schedule, gradient_at, posterior_variance, preserving
from ..step import Estimate, Run, State, Step

MA_2023 = """@inproceedings{ma2023elucidating,
  title     = {Elucidating The Design Space of Classifier-Guided Diffusion Generation},
  author    = {Ma, Jiajun and Hu, Tianyang and Wang, Wenjia and Sun, Jiacheng},
  booktitle = {International Conference on Learning Representations},
  year      = {2024},
  note      = {arXiv:2310.11311}
}"""


@register(
    "elucd",
    references=(MA_2023,),
    example="elucd(0.5, 'blue')",
)
@dataclass(frozen=True)
class EluCD(Shifting):
    r"""EluCD: guidance by a classifier of clean pictures at the predicted clean sample, strongest mid-run.

    .. math::
        \tilde\mu = \hat\mu + k\,\Big(\Sigma_t + \gamma\, \max_{\tau \ge t} \Sigma_\tau\, \sin\frac{\pi t}{T}\Big)
        \nabla_{\hat x_0} \Big(\tau_1 f_y(\hat x_0) - \log \textstyle\sum_i e^{\tau_2 f_i(\hat x_0)}\Big)

    with the posterior of a DDPM step as in `ClassifierGuidance`, whose form of the mean it is at :math:`\gamma = 0`.
    Steps are counted down, :math:`t = T - 1, \dots, 0` of T: the sine is 0 at the last one. They are those of the whole
    schedule, also where image-to-image leaves out the first.

    What else the paper changes is in the objective: ``imagenet(207, margin=0.5, softplus=3)`` and
    ``emoji('cat face', margin=0, softplus=5)`` have :math:`\tau_1 = 1`, :math:`\tau_2` as `margin`, and softplus in
    place of each ReLU, without training again.

    Args:
        scale: k, any number up to 1e6 in size; 0 is off.
        objective: the text of the objective.
        sine: :math:`\gamma \ge 0`, the share of the term with the sine.

    Queries: none of its own, and no gradient goes through the denoiser; the objective is evaluated once a step, with
    its gradient.

    State: none, since the variances follow from the schedule, which must be known beforehand as `guide` and `sample`
    have it. The authors' code takes the variances that the network learnt; these are the fixed small ones. All symbols
    are those of the variance-preserving scaling of x. Space: denoised; the sampler keeps the noise of the estimate,
    see `TFG`. Trace ``log_f``.

    References:
        Ma, Hu, Wang & Sun, "Elucidating The Design Space of Classifier-Guided Diffusion Generation", arXiv:2310.11311;
        the schedule as in its official code for DDPM, with k = 1, :math:`\gamma = 0.3`, a margin of 0.5 and softplus of
        beta 3. Its code for EDM, which shows the classifier the noisy sample, is another method and is not here.

    >>> from guidestack import EluCD
    >>> print(EluCD(1, "imagenet(207, margin=0.5, softplus=3)"))
    elucd(1, 'imagenet(207, margin=0.5, softplus=3)')
    """

    space: ClassVar[Any] = "denoised"
    neutral_values: ClassVar[Mapping[str, Any] | None] = {"scale": 0.0}

    scale: float
    objective: str
    sine: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        number(self, "scale")
        number(self, "sine", 0, LARGEST)

    def init(self, run: Run) -> State:
        """Look up the objective and check that the rule can use it; the rule has no state.

        Raises:
            InputError: there is no such objective.
            RuleError: the objective has no gradient, or this loop does not tell the schedule.
            UnsupportedError: the loop hands rules no objectives.
        """
        check_schedule(self, run, "the rule {}")
        return super().init(run)

    def steered(self, estimate: Estimate, objective: Bound, step: Step) -> Estimate:
        """Return the estimate with its clean sample moved along the gradient."""
        value, slope = gradient_at(objective, estimate.prediction, step.level)
        after = step.run.levels[step.index + 1]
        return along(estimate, self.scale * self.weight(step) / preserving(after)[0] * slope, log_f=value)

    def weight(self, step: Step) -> float:
        """Return the factor of the gradient at a step, without the scale."""
        steps = len(step.run.levels) - 1
        most = max(posterior_variance(step, index) for index in range(step.index + 1))
        return posterior_variance(step) + self.sine * most * math.sin(math.pi * (steps - 1 - step.index) / steps)
