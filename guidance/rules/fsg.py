"""Foresight guidance: long steps down under guidance and back up without, early in a run (Wang et al. 2025)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from ..errors import RuleError, shown
from ..fields import is_number, number, plain, set_field
from ..move import Move
from ..notation.registry import register
from ..prediction import Level
from ..query import NEGATIVE, POSITIVE, Query
from ..step import Run, Step
from ..turn import Look, Sight

WANG_2025 = """@inproceedings{wang2025foresight,
  title     = {Towards a Golden Classifier-Free Guidance Path via Foresight Fixed Point Iterations},
  author    = {Wang, Kaibo and Mao, Jianda and Wu, Tong and Xiang, Yang},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2025},
  note      = {arXiv:2510.21512}
}"""
MOST_TIMES = 1000


class Foreseen(NamedTuple):
    """What `FSG` remembers between the two turns of an iteration.

    Attributes:
        x: the samples where the long step led; None outside of an iteration.
    """

    x: Tensor | None


@register("fsg", references=(WANG_2025,), example="cfgpp(1) | fsg(5.5)")
@dataclass(frozen=True)
class FSG(Move[Foreseen]):
    r"""Foresight guidance: early in a run, iterate x towards a fixed point of a guided step and its unguided inverse.

    An iteration leads from x at the level :math:`(\alpha, \sigma)` in one DDIM step under guidance of scale w to the
    level :math:`(\alpha', \sigma')` several steps ahead, and back by DDIM inversion under scale s:

    .. math::
        x' = \alpha' D_w(x) + \sigma' \epsilon_w(x), \qquad
        x \leftarrow \alpha D_s(x') + \sigma \epsilon_s(x'), \qquad D_w = D_u + w (D_c - D_u)

    likewise :math:`\epsilon_w`. A fixed point is an x whose guided way down is the unguided way up. Z-sampling is one
    iteration over one step.

    Args:
        scale: w, any number up to 1e6 in size.
        schedule: where to iterate: for each place its progress, from 0 and below 1, how far ahead the level is, as a
            share of the steps, and how often. () is off. A place is the step that is nearest to it; the level is
            at least a step ahead, and at most that of the last step. The default is the authors' for 40 steps: twice
            over 5 steps at steps 0 and 5, and once at step 15.
        inverse: s, the scale on the way back; the authors take 0.
        against: the query that :math:`D_u` answers.

    Queries: "positive" and `against` for each iteration, at x and at the level ahead; of the two only one on a way
    whose scale is 0 or 1. The authors' steps between are those of CFG++ of scale 1: ``cfgpp(1) | fsg(5.5)``.

    State: samples like x, between the two turns of an iteration. Samplers that evaluate once a step and remember
    nothing; under one that draws noise the iterations draw none.

    References:
        Wang et al., "Towards a Golden Classifier-Free Guidance Path via Foresight Fixed Point Iterations",
        arXiv:2510.21512, with the settings of their code. There DDIM's scheduler takes the long step, which steps by
        one step of the sampler whatever it is asked for; here the step leads to the level ahead.

    >>> from guidestack import FSG, CFGPlusPlus
    >>> print(CFGPlusPlus(1) | FSG(5.5))
    cfgpp(1) | fsg(5.5)
    """

    space: ClassVar[Any] = "noise"
    neutral_values: ClassVar[Mapping[str, Any] | None] = {"schedule": ()}

    scale: float
    schedule: tuple[tuple[float, float, int], ...] = ((0.0, 0.125, 2), (0.125, 0.125, 2), (0.375, 0.125, 1))
    inverse: float = 0.0
    against: Query | str = NEGATIVE

    def __post_init__(self) -> None:
        number(self, "scale")
        number(self, "inverse")
        set_field(self, "schedule", _places(self.schedule))
        set_field(self, "against", Query.of(self.against))

    def init(self, run: Run) -> Foreseen:
        """Return the state before the first step, which holds no samples."""
        return Foreseen(None)

    @property
    def takes_turns(self) -> bool:
        """Whether the rule iterates before some steps: whether `schedule` is not empty."""
        return bool(self.schedule)

    def asks(self) -> frozenset[Query]:
        """Return the queries that the two scales need: the prompt, `against`, or both."""
        return frozenset({*self._asked(self.scale), *self._asked(self.inverse)}) if self.schedule else frozenset()

    def queries(self, step: Step, state: Foreseen) -> dict[Query, None]:
        """Return no queries: the rule asks in its turns, and not at the sampler's own evaluation."""
        return {}

    def turns(self, step: Step, state: Foreseen) -> int:
        """Return the number of turns before this step: two for each iteration."""
        ahead, times = self._here(step)
        return 2 * times if ahead else 0

    def look(self, x: Tensor, step: Step, state: Foreseen) -> Look:
        """Ask for the predictions at x in the first turn of an iteration, and at the level ahead in the second."""
        if state.x is None:
            return Look(self._asked(self.scale))
        return Look(self._asked(self.inverse), x=state.x, ahead=self._here(step)[0])

    def turn(self, x: Tensor, sight: Sight, step: Step, state: Foreseen) -> tuple[Tensor, Foreseen]:
        """Step to the level ahead under guidance, or back from it by DDIM inversion."""
        if state.x is None:
            return x, Foreseen(self._at(_level(step, self._here(step)[0]), sight, self.scale))
        return self._at(step.level, sight, self.inverse), Foreseen(None)

    def _asked(self, scale: float) -> dict[Query, None]:
        both = {POSITIVE: scale != 0, Query.of(self.against): scale != 1}
        return {query: None for query, needed in both.items() if needed}

    def _at(self, level: Level, sight: Sight, scale: float) -> Tensor:
        """What the predictions of scale `scale` say that the samples are at `level`."""
        asked = list(self._asked(scale))
        first = sight.predictions[asked[-1]]
        denoised, noise = first.denoised, first.noise
        if len(asked) > 1:
            c = sight.predictions[asked[0]]
            denoised, noise = denoised + scale * (c.denoised - denoised), noise + scale * (c.noise - noise)
        return level.noised(denoised, noise)

    def _here(self, step: Step) -> tuple[int, int]:
        """How many steps ahead the iterations of this step look, and how many there are."""
        steps = step.run.steps
        places = {
            round(start * steps): (max(1, round(length * steps)), times) for start, length, times in self.schedule
        }
        length, times = places.get(step.index, (0, 0))
        return min(length, steps - 1 - step.index), times


def _level(step: Step, ahead: int) -> Level:
    """The level so many steps ahead; of a plan, which knows of none, that of the step."""
    levels = step.run.levels
    return levels[step.index + ahead] if levels else step.level


def _places(value: Any) -> tuple[tuple[float, float, int], ...]:
    """The places of a schedule.

    Raises:
        RuleError: `value` is not such a schedule.
    """
    value = plain(value)
    rows = [plain(one) for one in value] if isinstance(value, tuple | list) else None
    good = rows is not None and all(isinstance(one, tuple | list) and len(one) == 3 for one in rows)
    found = [tuple(plain(each) for each in one) for one in rows] if good and rows is not None else []
    for one in found:
        start, length, times = one
        good = good and all(map(is_number, one)) and 0 <= start < 1 and 0 < length <= 1
        good = good and 1 <= times <= MOST_TIMES and times == int(times)
    if not good:
        raise RuleError(
            "FSG: schedule is a list of places, each with its progress, how far ahead it looks as a share of the "
            f"steps, and how often, such as ((0, 0.125, 2), (0.375, 0.125, 1)); got {shown(value)}"
        )
    return tuple((float(start), float(length), int(times)) for start, length, times in found)
