"""CFG-MP: x is brought to where both conditions agree, by half a step back and half a step on (Cai et al. 2026)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from ..fields import flag, number, set_field, whole
from ..move import Move
from ..notation.registry import register
from ..per_sample import share
from ..prediction import Level, Prediction
from ..query import NEGATIVE, POSITIVE, Query
from ..step import Run, Step
from ..turn import Look, Sight

CAI_2026 = """@article{cai2026improving,
  title   = {Improving Classifier-Free Guidance of Flow Matching via Manifold Projection},
  author  = {Cai, Jian-Feng and Liu, Haixia and Su, Zhengyi and Wang, Chao},
  journal = {arXiv preprint arXiv:2601.21892},
  year    = {2026}
}"""


class Projected(NamedTuple):
    """What `CFGMP` remembers during the turns of a step.

    Attributes:
        half: the samples after the half step back; None between two iterations.
        x: where the iteration before began, in the coordinates of the flow; None before there was one.
        gap: how far that iteration led; likewise.
    """

    half: Tensor | None = None
    x: Tensor | None = None
    gap: Tensor | None = None


@register("cfg_mp", references=(CAI_2026,), example="cfg(3) | cfg_mp()")
@dataclass(frozen=True)
class CFGMP(Move[Projected]):
    r"""CFG-MP: before a step, move x towards the points at which both conditions give the same velocity.

    In the coordinates of the flow, :math:`y = x/(\alpha + \sigma)` at the time :math:`t = \sigma/(\alpha + \sigma)`
    with the velocity :math:`v = \epsilon - D`, an iteration goes half a step back without the prompt and half a step
    forwards with it; the network is given the level of x both times:

    .. math:: z = y - \tfrac{\Delta}{2}\, v_u(y), \qquad G(y) = z + \tfrac{\Delta}{2}\, v_c(z), \qquad \Delta = t' - t

    so that :math:`G(y) - y` is about :math:`\tfrac{\Delta}{2} (v_c - v_u)` and vanishes where both velocities do not
    differ. With `anderson` (CFG-MP+) an iteration is combined with the one before it, of the gaps
    :math:`f_k = G(y_k) - y_k`:

    .. math:: y_{k+1} = (1 - \theta)(y_k + \beta f_k) + \theta\,(y_{k-1} + \beta f_{k-1}), \qquad
              \theta = \frac{\langle f_k, f_k - f_{k-1}\rangle}{|f_k - f_{k-1}|^2}

    Args:
        times: iterations before a step; 0 is off. The authors take 2 or 3.
        anderson: whether to combine two iterations: Anderson acceleration with a memory of 1.
        damping: :math:`\beta` in (0, 1]; without `anderson` :math:`y + \beta f`. The authors take 1, and 0.7 for
            Stable Diffusion 3.5.
        against: the query that :math:`v_u` answers.

    Queries: `against` and "positive" for each iteration, once each; the step's own on top, at the x where they ended.
    The authors iterate in the first 0.5 or 0.6 of the flow's time:
    ``cfg(3) | during(cfg_mp(), sigma=(0.67, inf))``, noise levels sigma/alpha of which 0.67 is t = 0.4.

    State: samples like x, during the turns of a step. Any noise path; the network of another than the flow's is read
    in the flow's coordinates. Samplers that evaluate once a step and remember nothing.

    References:
        Cai et al., "Improving Classifier-Free Guidance of Flow Matching via Manifold Projection", arXiv:2601.21892, as
        in their code: the half step is half of the sampler's, and theta is each sample's own. A small term that the
        code adds to its normal equations is left out; theta is 0 where the gaps are equal. For Stable Diffusion 3.5
        the code has both halves in the other order where t is above 0.95, which is not here.

    >>> from guidestack import CFG, CFGMP
    >>> print(CFG(3) | CFGMP(anderson=True))
    cfg(3) | cfg_mp(anderson=True)
    """

    space: ClassVar[Any] = "velocity"
    neutral_values: ClassVar[Mapping[str, Any] | None] = {"times": 0}

    times: int = 2
    anderson: bool = False
    damping: float = 1.0
    against: Query | str = NEGATIVE

    def __post_init__(self) -> None:
        whole(self, "times", 0)
        flag(self, "anderson")
        number(self, "damping", 1e-3, 1.0)
        set_field(self, "against", Query.of(self.against))

    def init(self, run: Run) -> Projected:
        """Return the state before the first step, which holds no samples."""
        return Projected()

    @property
    def takes_turns(self) -> bool:
        """Whether the rule iterates before steps: whether `times` is above 0."""
        return self.times > 0

    def asks(self) -> frozenset[Query]:
        """Return the queries of an iteration: the prompt, and `against`."""
        return frozenset({POSITIVE, Query.of(self.against)}) if self.times else frozenset()

    def queries(self, step: Step, state: Projected) -> dict[Query, None]:
        """Return no queries: the rule asks in its turns, and not at the sampler's own evaluation."""
        return {}

    def turns(self, step: Step, state: Projected) -> int:
        """Return the number of turns before this step: two for each iteration."""
        return 2 * self.times

    def look(self, x: Tensor, step: Step, state: Projected) -> Look:
        """Ask for the contrast at x in the first turn of an iteration, for the prompt half a step back in the next."""
        if state.half is None:
            return Look({Query.of(self.against): None})
        return Look({POSITIVE: None}, x=state.half)

    def turn(self, x: Tensor, sight: Sight, step: Step, state: Projected) -> tuple[Tensor, Projected]:
        """Take half a step back under the contrast, or half a step forwards under the prompt."""
        size = step.level.alpha + step.level.sigma
        half = (_time(step.after or Level(1.0, 0.0)) - _time(step.level)) / 2
        if state.half is None:
            back = x - size * half * _velocity(sight.predictions[Query.of(self.against)])
            return x, state._replace(half=back)
        y = x / size
        gap = (state.half / size + half * _velocity(sight.predictions[POSITIVE])) - y
        moved, last = y + self.damping * gap, step.turn == 2 * self.times
        if self.anderson and state.x is not None and state.gap is not None:
            theta = share(gap, gap - state.gap)
            moved = moved + theta * (state.x + self.damping * state.gap - moved)
        return size * moved, Projected() if last else Projected(None, y, gap)


def _time(level: Level) -> float:
    """The time of the flow at a level."""
    return level.sigma / (level.alpha + level.sigma)


def _velocity(prediction: Prediction) -> Tensor:
    """The velocity of the flow, in its coordinates."""
    return prediction.noise - prediction.denoised
