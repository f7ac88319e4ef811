"""Schedule: what is evaluated at which step, as a line of letters; some steps go by what earlier ones answered."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from ..errors import RuleError, shown
from ..fields import choice, set_field, whole
from ..notation.registry import register
from ..prediction import SPACES, Level, Prediction, Space
from ..query import Predictions, RowMask
from ..rule import Wrapper
from ..step import Estimate, Run, State, Step
from .adaptive import CASTILLO_2023

GUIDED, CONDITIONAL, REUSED, SKIPPED = "g", "c", "r", "s"
LETTERS = GUIDED + CONDITIONAL + REUSED + SKIPPED
LONGEST = 1000  # letters of a plan
PERIOD = 4  # letters of a repeated group that is found when a plan is written


class Kept(NamedTuple):
    """The numbers that `Schedule` keeps of one evaluation, and at which level that was.

    Attributes:
        level: of the evaluation.
        value: shape ``(B, ...)``, float32 or better.
        renoise: likewise, or None.
    """

    level: Level
    value: Tensor
    renoise: Tensor | None


class Remembered(NamedTuple):
    """What `Schedule` remembers, as long as a step to come needs it.

    Attributes:
        updates: what `rule` did to the prompt's prediction at its last evaluations, newest last; at most two.
        estimates: the last estimates, likewise.
        inner: the state of the wrapped rule.
    """

    updates: tuple[Kept, ...]
    estimates: tuple[Kept, ...]
    inner: State


@lru_cache(maxsize=1024)
def read_plan(plan: str) -> tuple[str, str]:
    """The letters of a plan: those that stand in it, and those that are repeated behind them to the end of a run.

    Raises:
        RuleError: it is no plan.

    >>> read_plan("g6 (rg)2 c*"), read_plan("gcs")
    (('ggggggrgrg', 'c'), ('gcs', ''))
    """
    letters = re.sub(r"\s+(?=[^\d\s])|(?<=[^\d\s])\s+", "", plan.strip())
    for item in (r"([gcrs])", r"\(([gcrs]+)\)"):  # letters with how often, then what stands in brackets
        if len(letters) <= LONGEST:
            letters = re.sub(item + r"(0*[1-9]\d{0,3})(?![\d*])", lambda one: one[1] * int(one[2]), letters)
    letters = re.sub(r"\(([gcrs]+)\)(?![\d*])", r"\1", letters)
    match = re.fullmatch(r"([gcrs]*?)(?:(?:([gcrs])|\(([gcrs]+)\))\*)?", letters) if len(letters) <= LONGEST else None
    if not match or not letters:
        raise RuleError(
            f"Schedule: cannot read the plan {plan[:80]!r}: it is letters g (guided), c (conditional), r (reused), s "
            f"(skipped) with how often, such as 'g6 (rg)2 c*', and {LONGEST} letters at most"
        )
    return match[1], match[2] or match[3] or ""


def written_plan(head: str, tail: str = "") -> str:
    """The text of a plan, the same for the same letters; `read_plan` reads it back.

    >>> written_plan("ggggggrgrgcc", "c"), written_plan("gcs")
    ('g6 (rg)2 c*', 'g c s')
    """
    while tail and head.endswith(tail):
        head = head.removesuffix(tail)
    items = []
    while head:
        runs = [(size, len(re.match(f"({head[:size]})+", head)[0])) for size in range(1, PERIOD + 1)]  # type: ignore[index]
        size, length = max(runs, key=lambda run: run[1] if run[1] > run[0] or run[0] == 1 else 0)
        items.append((head[:size], str(length // size) * (length > size)))
        head = head[length:]
    items += [(tail, "*")] * bool(tail)
    return " ".join(f"{one}{times}" if len(one) == 1 else f"({one}){times}" for one, times in items)


@register(
    "schedule",
    references=(CASTILLO_2023,),
    example=("schedule(cfg(3), 'g r*')", "schedule(cfg(3), 'g s*')"),
)
@dataclass(frozen=True)
class Schedule(Wrapper[Remembered]):
    r"""Apply `rule` at some steps and reuse or extrapolate earlier predictions at others: a letter for each step.

    ======  ===================================================================  =====================
    letter  the step                                                             evaluations
    ======  ===================================================================  =====================
    ``g``   guided: `rule` as it is                                              those of the rule
    ``c``   conditional: the prompt's prediction                                 1
    ``r``   reused: the prompt's prediction, and what `rule` did to it before    1
    ``s``   skipped: an estimate from the last ones, without any prediction      0
    ======  ===================================================================  =====================

    With :math:`\Delta_i = \hat D_i - D_{c,i}`, what the rule did to the prompt's prediction at its evaluation i, and
    :math:`\lambda = \log(\alpha/\sigma)`, at a level :math:`\lambda` after the last two at a and b

    .. math:: r:\ D_c + \Delta_b + \rho\,(\Delta_b - \Delta_a),\qquad s:\ \hat D_b + \rho\,(\hat D_b - \hat D_a),\qquad
              \rho = \frac{\lambda - \lambda_b}{\lambda_b - \lambda_a}

    read in `space`; :math:`\rho` is 0 with order 0, and where there is no second one or a level is pure noise or none.

    Args:
        rule: any rule, a stack included; what else is wanted goes in here: ``schedule(adaptive(cfg(4)), 'g6 r*')``.
        plan: letters, each with how often; several in brackets. ``*`` in a number's place repeats to the end of the
            run, whatever its length; without it the plan has a letter for each step. The steps are those of the
            schedule: a run that begins mid-way begins there in the plan. A step r or s without an earlier answer is
            guided.
        order: of the extrapolation at r: 0 holds the last difference, 1 goes on in a line through the last two.
        skip_order: likewise at s, of the estimates.
        space: in which differences and estimates are kept. The two branches' clean samples differ by about the same
            amount as long as there is much noise, their noises as long as there is little; the ratio of the two is
            sigma/alpha. ``"velocity"`` is near the former where alpha is small and near the latter where sigma is, so
            that its differences change least from step to step. An estimate held in ``"denoised"`` or ``"noise"`` makes
            two steps of a first-order solver without noise of its own one longer step.

    Queries: those of `rule` at g; none at c and r, whose prompt's prediction every step has; at s not even that. With a
    solver that evaluates twice a step a letter is for both.

    State: at most two differences and two estimates, float32 or better, as long as a step to come needs them; the state
    of `rule`. Trace ``reused`` (1 at r and s, else 0).

    Raises:
        RuleError: at construction, the plan cannot be read, or begins with a letter that needs an earlier answer; when
            a run begins, the plan is for another number of steps.

    References:
        Castillo et al., "Adaptive Guidance: Training-free Acceleration of Conditional Diffusion Models",
        arXiv:2312.12487, section 3: which prediction to evaluate at which step, as a search. Holding the difference is
        known from inference engines; the extrapolation at s is that of multistep solvers in log-SNR (Lu et al.,
        arXiv:2211.01095, which `skip_order` 1 continues over a missing evaluation).

    >>> from guidestack import CFG, Schedule
    >>> print(Schedule(CFG(4), "gggggg rgrgrg cccc c*"))
    schedule(cfg(4), 'g6 (rg)3 c*')
    """

    whole_stack: ClassVar[bool] = True  # a skipped step has no prediction that another rule could work on

    plan: str
    order: int = 1
    skip_order: int = 1
    space: Space = "velocity"  # type: ignore[misc]  # the user's choice, so a field instead of a class attribute

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.plan, str):
            raise RuleError(f"Schedule: plan is a text such as 'g6 r4 c*'; got {shown(self.plan)}")
        head, tail = read_plan(self.plan)
        set_field(self, "plan", written_plan(head, tail))
        for name in ("order", "skip_order"):
            whole(self, name, 0, 1)
        choice(self, "space", SPACES)
        for letter, needs in ((SKIPPED, (GUIDED, CONDITIONAL)), (REUSED, (GUIDED,))):
            before = (head + tail).partition(letter)
            if before[1] and not set(needs) & set(before[0]):
                raise RuleError(
                    f"Schedule: {self.plan!r} begins with {letter}, which needs an earlier step: put "
                    f"{' or '.join(needs)} before it"
                )

    @cached_property
    def skips(self) -> bool:
        """Whether the rule may skip the network at a step: whether the plan has an s."""
        return SKIPPED in "".join(read_plan(self.plan))

    def letters(self, steps: int) -> str:
        """The plan written out: a letter for each of `steps` steps.

        Raises:
            RuleError: the plan is for another number.
        """
        head, tail = read_plan(self.plan)
        if len(head) == steps or (tail and len(head) < steps):
            return (head + tail * steps)[:steps]
        raise RuleError(
            f"schedule: the plan {self.plan!r} is for {'at least ' * bool(tail)}{len(head)} steps, and this run has "
            f"{steps}; write another, or end it with a letter and * for any number"
        )

    def check_steps(self, steps: int) -> None:
        """Check that the plan is for a run of so many steps.

        Raises:
            RuleError: it is for another number.
        """
        self.letters(steps)

    def init(self, run: Run) -> Remembered:
        """The state before the first step, in which nothing is kept.

        Raises:
            RuleError: the plan is for another number of steps.
        """
        self.letters(run.steps)
        return Remembered((), (), self.rule.init(run))

    def _letter(self, step: Step, state: Remembered) -> str:
        """What is done at this step."""
        letter = self.letters(step.run.steps)[step.index]
        if (letter == REUSED and not state.updates) or (letter == SKIPPED and not state.estimates):
            return GUIDED
        return letter

    def applies(self, step: Step, state: Remembered) -> bool:
        """Return whether the step is guided; at others the inner rule asks for nothing."""
        return self._letter(step, state) == GUIDED

    def rule_state(self, state: Remembered) -> State:
        """The state of the wrapped rule, a part of this one."""
        return state.inner

    def unasked(self, step: Step, state: Remembered) -> RowMask | None:
        """Return the samples that need no prediction at this step: all of them at a skipped one."""
        if self._letter(step, state) != SKIPPED:
            return None
        return torch.ones(step.run.batch, dtype=torch.bool)

    def update(
        self, estimate: Estimate, predictions: Predictions, step: Step, state: Remembered
    ) -> tuple[Estimate, Remembered]:
        """Apply the wrapped rule at guided steps; at others reuse or extrapolate what was kept, as the letter says."""
        letter = self._letter(step, state)
        later = self.letters(step.run.steps)[step.index :]  # with this step: a solver may come to it again
        updates, estimates, inner = state
        prompt = estimate.prediction
        if letter == GUIDED:
            estimate, inner = self.rule.update(estimate, predictions, step, inner)
            if REUSED in later:
                updates = _with(updates, self._update(prompt, estimate, step.level), 1 + self.order)
        elif letter == REUSED:
            held = _extrapolated(updates, step.level, self.order)
            base = prompt.read(self.space)
            renoise = None if held.renoise is None else prompt.replace(self.space, base + held.renoise)
            estimate = Estimate(prompt.replace(self.space, base + held.value), renoise, estimate.traces)
        elif letter == SKIPPED:
            held = _extrapolated(estimates, step.level, self.skip_order)
            renoise = None if held.renoise is None else prompt.replace(self.space, held.renoise)
            estimate = Estimate(prompt.replace(self.space, held.value), renoise, estimate.traces)
        if SKIPPED not in later:
            estimates = ()
        elif letter != SKIPPED:
            estimates = _with(estimates, self._estimate(estimate, step.level), 1 + self.skip_order)
        if REUSED not in later:
            updates = ()
        reused = float(letter in (REUSED, SKIPPED))
        mark = torch.full((step.run.batch,), reused, dtype=torch.float32, device=prompt.native.device)
        marked = Estimate(estimate.prediction, estimate.renoise, {**estimate.traces, "reused": mark})
        return marked, Remembered(updates, estimates, inner)

    def _update(self, prompt: Prediction, guided: Estimate, level: Level) -> Kept:
        base = prompt.read(self.space)
        renoise = None if guided.renoise is None else guided.renoise.read(self.space) - base
        return Kept(level, guided.read(self.space) - base, renoise)

    def _estimate(self, estimate: Estimate, level: Level) -> Kept:
        """The estimate in memory of its own: that of a network's output may be used again for the next one."""

        def own(prediction: Prediction) -> Tensor:
            value = prediction.read(self.space)
            return value.clone() if value is prediction.native else value

        renoise = None if estimate.renoise is None else own(estimate.renoise)
        return Kept(level, own(estimate.prediction), renoise)

    def neutral(self) -> Self:
        """A copy around the neutral form of the wrapped rule, with the prompt's prediction at every step."""
        return dataclasses.replace(self, rule=self.rule.neutral(), plan="c*")


def _with(kept: Sequence[Kept], one: Kept, most: int) -> tuple[Kept, ...]:
    """Append one and keep the last `most`; of two at one level, as in solvers of two evaluations, the later stays."""
    before = kept[:-1] if kept and kept[-1].level == one.level else kept
    return (*before, one)[-most:]


def _extrapolated(kept: Sequence[Kept], level: Level, order: int) -> Kept:
    """Return the last one kept, or the line through the last two in log-SNR, at `level`."""
    last = kept[-1]
    ahead = _ahead(kept[-2].level, last.level, level) if order and len(kept) > 1 else 0.0
    if not ahead:
        return last

    def line(now: Tensor, before: Tensor) -> Tensor:
        return torch.add(now * (1 + ahead), before, alpha=-ahead)

    renoise = None
    if last.renoise is not None:
        earlier = kept[-2].renoise
        renoise = last.renoise if earlier is None else line(last.renoise, earlier)
    return Kept(level, line(last.value, kept[-2].value), renoise)


def _ahead(first: Level, second: Level, level: Level) -> float:
    """Return rho of the equation, 0 where it is not defined."""
    ks = (first.k_sigma, second.k_sigma, level.k_sigma)
    if not all(0 < k < math.inf for k in ks) or ks[0] == ks[1]:
        return 0.0
    a, b, here = (-math.log(k) for k in ks)
    return (here - b) / (b - a)
