"""Replacement: known pixels, or a known linear part of the picture, in place of what the model makes (Song et al.)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ..errors import RuleError
from ..fields import flag
from ..notation.registry import register
from ..objective import Bound, Determining
from ..prediction import Prediction
from ..steering import Steering
from ..step import Estimate, Run, State, Step
from ..turn import Sight

SONG_2021 = """@inproceedings{song2021score,
  title     = {Score-Based Generative Modeling through Stochastic Differential Equations},
  author    = {Song, Yang and Sohl-Dickstein, Jascha and Kingma, Diederik P. and Kumar, Abhishek and Ermon, Stefano
               and Poole, Ben},
  booktitle = {International Conference on Learning Representations},
  year      = {2021},
  note      = {arXiv:2011.13456}
}"""


@register("replace", references=(SONG_2021,), example="replace('border')")
@dataclass(frozen=True)
class Replace(Steering):
    r"""Replacement: put the known pixels or measurements of a picture into the predicted clean sample (inpainting).

    Known are measurements :math:`y = A x_0`, with P = :math:`A^+ A` the orthogonal projection on what they determine
    and :math:`\hat y` a picture that has them, :math:`A \hat y = y`. The clean sample is made to have them,

    .. math:: D \leftarrow D + P(\hat y - D),

    and the noise is what x leaves, so that a step of any solver keeps the known part on
    :math:`P(\alpha \hat y + \sigma n)`, with n the noise that x has there. At the end it is :math:`P \hat y`, to
    rounding: where a schedule ends with noise, `sample` and guided pipelines take it off the known part. With `fresh`
    that noise is, besides, drawn anew behind each step of the sampler and the turns of the rules before this one, as in
    the paper:

    .. math:: x \leftarrow x + P(\alpha \hat y + \sigma z - x),\qquad z \sim N(0, I).

    The law: the known part has that of the noised measurements at every level, and the unknown one follows the score
    of :math:`p_t(x)` beside it. Where the two are independent that is the conditional law. Else it is not, however
    many steps there are: at high noise the unknown part sees little of the known one. ``langevin(3) | replace(...)``
    comes nearer, and ``replace(...) | recur(10)``, which is RePaint, nearer still; see docs/inverse-problems.md.

    Args:
        objective: the text of the measurements: ``"known"`` (inpainting), ``"gray"`` (colorization), ``"superres(4)"``,
            ``"border"``; see docs/objectives.md. Their `spread` is not used.
        fresh: whether the noise of the known part is fresh at each step. Without, it is that of the first x, and what a
            stochastic sampler adds.

    Queries: none of its own, and no gradient. With `fresh` samplers that evaluate once a step and remember nothing.

    State: none. The noise comes from generators keyed by (seed, step, evaluation, turn, "replace"). Space: denoised.

    Samples are pictures, or with "known" and "border" latents of an autoencoder whose encoder is known here: then what
    is known is the encoder's latents of :math:`\hat y`, in those cells of which every pixel is known. Pixels are then
    as exact as the decoder makes them.

    References:
        Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations", arXiv:2011.13456,
        controllable generation: imputation and colorization, with `fresh`.

    >>> from guidestack import CFG, Replace
    >>> print(CFG(3) | Replace("known", fresh=True))
    cfg(3) | replace('known', fresh=True)
    """

    space: ClassVar[Any] = "denoised"
    neutral_values: ClassVar[Mapping[str, Any] | None] = None

    objective: str
    fresh: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        flag(self, "fresh")

    @property
    def stands_last(self) -> bool:
        """True: the measurements are put into the finished estimate, which no later rule may change."""
        return True

    @property
    def takes_turns(self) -> bool:
        """Whether the rule draws the known part's noise anew between two steps: whether `fresh` is set."""
        return self.fresh

    def init(self, run: Run) -> State:
        """Look up the measurements and convert them to a sample; the rule has no state.

        Raises:
            InputError: as in `Steering`, or the run's samples are of another form than the measurements.
            RuleError: the objective does not say which part of the picture it determines.
            UnsupportedError: as in `Steering`, or how this pipeline makes samples of pictures is not known.
        """
        super().init(run)
        if run.objectives is not None:
            run.objectives.find(self.objective).sample(run.shape, run.device)
        return ()

    def check_objective(self, objective: Bound) -> None:
        """Check that an objective says which part of the picture it determines.

        Raises:
            RuleError: it does not say so.
        """
        if not isinstance(objective.function, Determining):
            raise RuleError(
                f"{self}: the objective {objective.name!r} does not say which part of a picture it determines; "
                f"'known', 'gray', 'superres' and 'border' do, and tfg({objective.name!r}, mu=0.3) leads towards any"
            )

    def turns(self, step: Step, state: State) -> int:
        """Return the number of turns: with `fresh` one after each step that leaves noise, else 0."""
        return int(self.fresh and step.before is not None and step.level.sigma > 0)

    def turn(self, x: Tensor, sight: Sight, step: Step, state: State) -> tuple[Tensor, State]:
        """Replace the known part of the samples by the measurements with fresh noise of the step's level."""
        if step.run.objectives is None:  # a plan, in which the samples are moved too: what follows is evaluated anew
            return x.clone(), state
        objective = step.run.objectives.find(self.objective)
        z = sight.noise(x, "replace")
        known = step.level.noised(objective.sample(x.shape, x.device).to(z.dtype), z)
        return x + objective.function.determined(known - x), state

    def ended(self, x: Tensor, step: Step, state: State) -> Tensor:
        """Return the samples with the measurements put in, if the schedule ends with noise that they would keep."""
        if step.run.objectives is None or step.after is None or step.after.sigma == 0:
            return x
        objective = step.run.objectives.find(self.objective)
        away: Tensor = objective.function.determined(objective.sample(x.shape, x.device).to(x.dtype) - x)
        return x + away

    def steered(self, estimate: Estimate, objective: Bound, step: Step) -> Estimate:
        """Return the estimate with the measurements put in, also into what the sampler re-noises with."""
        renoise = estimate.renoise and _replaced(estimate.renoise, objective)
        return Estimate(_replaced(estimate.prediction, objective), renoise, estimate.traces)


def _replaced(prediction: Prediction, objective: Bound) -> Prediction:
    """The prediction whose clean sample has the measurements."""
    x0 = prediction.denoised
    away = objective.sample(x0.shape, x0.device).to(x0.dtype) - x0
    return prediction.plus("denoised", objective.function.determined(away), 1.0)
