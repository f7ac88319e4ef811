"""Adaptive Guidance: stop guiding a sample once conditional and unconditional agree (Castillo et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ..errors import CompositionError, RuleError
from ..fetched import Fetched
from ..fields import choice, number, set_field, whole
from ..notation.registry import register
from ..per_sample import norm
from ..prediction import SPACES, Prediction, Space
from ..query import POSITIVE, Predictions, Queries, Query, RowMask, covered
from ..rule import Wrapper
from ..step import Estimate, Run, State, Step

CASTILLO_2023 = """@inproceedings{castillo2025adaptive,
  title     = {Adaptive Guidance: Training-free Acceleration of Conditional Diffusion Models},
  author    = {Castillo, Angela and Kohler, Jonas and P{\\'e}rez, Juan C. and P{\\'e}rez, Juan Pablo and
               Pumarola, Albert
               and Ghanem, Bernard and Arbel{\\'a}ez, Pablo and Thabet, Ali},
  booktitle = {AAAI Conference on Artificial Intelligence},
  year      = {2025},
  note      = {arXiv:2312.12487}
}"""


class Stopping(NamedTuple):
    """What Adaptive Guidance remembers from one evaluation to the next.

    Attributes:
        crossed: samples that have reached the threshold, booleans of shape ``(B,)``; never unset within a run.
        guiding: samples that are guided in the present step, likewise; held over its evaluations.
        inner: the state of the wrapped rule.
        sent: `crossed` after the last step, and with a lag before it that of the step before, on the way to the host.
        held: `guiding` on the way to the host.
    """

    crossed: Tensor
    guiding: Tensor
    inner: State
    sent: tuple[Fetched, ...]
    held: Fetched


def masked(queries: Queries, samples: Tensor) -> dict[Query, RowMask | None]:
    """`queries` for `samples` at most, booleans of shape ``(B,)`` on the host."""
    if bool(samples.all()):
        return dict(queries)
    return {query: samples if rows is None else rows.cpu() & samples for query, rows in queries.items()}


@register(
    "adaptive",
    references=(CASTILLO_2023,),
    example="adaptive(cfg(3), threshold=0.95, space='denoised')",
)
@dataclass(frozen=True)
class AdaptiveGuidance(Wrapper[Stopping]):
    r"""Adaptive Guidance: apply `rule` to each sample until conditional and unconditional predictions agree.

    .. math:: \gamma_t = \frac{\langle\epsilon_c, \epsilon_u\rangle}{\lVert\epsilon_c\rVert\,\lVert\epsilon_u\rVert}

    From the first step with :math:`\gamma_t \ge \bar\gamma` on, a sample is not guided and its queries are no more
    evaluated. Each sample decides for itself.

    Args:
        rule: any rule that guides away from a query, a stack included.
        threshold: :math:`\bar\gamma` in [-1, 1]; at 1 a sample stops where the two predictions have the same direction
            to the last bit, above 1 never. It means something in one `space` only; the
            paper's 0.991 to 0.996 are of noise predictions.
        space: in which the cosine is taken. Near pure noise all noise predictions are alike, whatever the prompt: of a
            network whose schedule begins there (SNR below 1e-3 or so) take ``"denoised"``, with a threshold of its own.
        crossing: what the step gets in which a sample reaches the threshold and whose evaluations are paid:
            ``"conditional"``, as the paper's formula has it, or ``"guided"``, as a widely used implementation does.
        against: the query that u answers; None for the one that `rule` guides away from.
        lag: 0, or 1 to decide which samples are evaluated by what was known a step before, so that no step waits for
            the device. The images are the same; each sample that stops costs the evaluations of one more step.

    Queries: those of `rule`, for the samples that have not stopped. Where `rule` does not ask for u (outside a window),
    nothing is measured and nothing decided. With a solver that evaluates twice a step the first decides for both.

    State: two booleans a sample, and that of `rule`. Traces ``cosine`` (NaN where it is not measured) and ``guiding``
    (1 or 0). Reading which samples are left waits for the device once a step, unless `lag` is 1.

    References:
        Castillo et al., "Adaptive Guidance: Training-free Acceleration of Conditional Diffusion Models",
        arXiv:2312.12487, eqs. 6-7.

    >>> from guidestack import AdaptiveGuidance, CFG
    >>> print(AdaptiveGuidance(CFG(7.5), threshold=0.994))
    adaptive(cfg(7.5), threshold=0.994)
    """

    data_dependent: ClassVar[bool] = True  # a sample stops when its predictions agree

    threshold: float = 0.991
    space: Space = "noise"  # type: ignore[misc]  # the user's choice, so a field instead of a class attribute
    crossing: str = "conditional"
    against: Query | str | None = None
    lag: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        whole(self, "lag", 0, 1)
        if number(self, "threshold") < -1:
            raise RuleError(f"AdaptiveGuidance: threshold is a cosine, -1 at least; got {self.threshold!r}")
        choice(self, "space", SPACES)
        choice(self, "crossing", ("conditional", "guided"))
        if self.against is not None:
            set_field(self, "against", Query.of(self.against))
        if self.contrast is None:
            raise CompositionError(
                f"adaptive compares the prompt with what its rule guides away from, and {self.rule} guides away from "
                f"nothing; put it behind: adaptive(...) | {self.rule}"
            )
        asked = self.rule.asks()
        if self.against is not None and asked and not covered(self.contrast, asked):
            raise CompositionError(
                f"adaptive: against={str(self.contrast)!r} is not asked by {self.rule}, which asks for "
                f"{', '.join(sorted(map(str, asked)))}; name one of these"
            )
        for part in self.rule.parts():
            if part.data_dependent:
                raise CompositionError(
                    f"adaptive around {self.rule}: both decide when a sample stops; keep one of the two"
                )

    @property
    def contrast(self) -> Query | None:
        """The query whose answer is compared with the prompt's: `against`, or the contrast of the rule."""
        return self.rule.contrast if self.against is None else Query.of(self.against)

    def init(self, run: Run) -> Stopping:
        """The state before the first step, in which every sample is guided."""
        nobody = torch.zeros(run.batch, dtype=torch.bool, device=run.device)
        known = Fetched(run.mask([False] * run.batch))
        return Stopping(nobody, ~nobody, self.rule.init(run), (known,) * (1 + self.lag), known)

    def rule_state(self, state: Stopping) -> State:
        """The state of the wrapped rule, a part of this one."""
        return state.inner

    def _guiding(self, step: Step, state: Stopping) -> Tensor:
        """Return which samples are guided at this evaluation, as far as that is known before it."""
        return state.guiding if step.evaluation else ~state.crossed

    def _contrast_of(self, asked: Queries) -> Query | None:
        """The contrast as the rule asks for it at this step, with this step's amount of perturbation."""
        contrast = self.contrast
        assert contrast is not None  # refused at construction
        return contrast if contrast in asked else next((one for one in asked if covered(one, {contrast})), None)

    def queries(self, step: Step, state: Stopping) -> Queries:
        """Return the queries of the rule for the samples that are still guided."""
        return masked(self.rule.queries(step, state.inner), self._left(step, state))

    def _left(self, step: Step, state: Stopping) -> Tensor:
        """Return the samples whose queries are evaluated, as a mask on the host."""
        return state.held.value if step.evaluation and not self.lag else ~state.sent[0].value

    def update(
        self, estimate: Estimate, predictions: Predictions, step: Step, state: Stopping
    ) -> tuple[Estimate, Stopping]:
        """Apply the rule to the samples that are guided, and leave the others as they are."""
        asked = self.rule.queries(step, state.inner)
        guiding, crossed, traces = self._guiding(step, state), state.crossed, {}
        contrast = self._contrast_of(asked)
        if not step.evaluation and contrast is not None and POSITIVE in asked:
            c, u = (predictions[query].read(self.space) for query in (POSITIVE, contrast))
            # 1 - cosine, without the rounding of a quotient near 1: 0 is where the directions are the same to the bit.
            apart = (norm(c / norm(c) - u / norm(u)).square() / 2).clamp(max=2).flatten()
            traces["cosine"] = torch.where(guiding, 1 - apart, torch.full_like(apart, torch.nan))
            crossed = crossed | (guiding & (apart <= 1 - self.threshold))
            if self.crossing == "conditional":
                guiding = guiding & ~crossed
        guided, inner = self.rule.update(estimate, predictions, step, state.inner)
        traces["guiding"] = guiding.to(torch.float32)
        merged = guided.where(guiding, estimate)
        merged = Estimate(merged.prediction, merged.renoise, {**merged.traces, **traces})
        if step.evaluation:
            return merged, state._replace(inner=inner)
        # With a lag the solver's second evaluation goes by what was known before the first, of which it is a part.
        sent = (*state.sent[1:], Fetched(crossed))
        return merged, Stopping(crossed, guiding, inner, sent, state.held if self.lag else Fetched(guiding))

    def away(self, predictions: Predictions, step: Step, state: Stopping) -> tuple[Prediction, RowMask | None] | None:
        """Return what the wrapped rule guides away from, for the samples whose queries are still evaluated."""
        led = self.rule.away(predictions, step, state.inner)
        if led is None:
            return None
        left = self._left(step, state)
        return led[0], left if led[1] is None else led[1].cpu() & left


class Counted(NamedTuple):
    """What `Prefix` remembers: the step at which the run began.

    Attributes:
        first: index of the step at which the run began; None before the first step.
        inner: the state of the wrapped rule.
    """

    first: int | None
    inner: State


@register(
    "prefix",
    references=(CASTILLO_2023,),
    example="prefix(cfg(3), 3)",
)
@dataclass(frozen=True)
class Prefix(Wrapper[Counted]):
    """Apply `rule` in the first `steps` steps of a run and not after: Adaptive Guidance without measuring.

    Args:
        rule: any rule, a stack included.
        steps: how many, counted from the step at which the run begins, which in image-to-image is not the schedule's
            first. 0 is never.

    Queries: those of `rule` in these steps; none after.

    State: the step at which the run began, and the state of `rule`.

    References:
        Castillo et al., arXiv:2312.12487, section 4: guidance matters in the first steps and can be dropped after.

    >>> from guidestack import CFG, Prefix
    >>> print(Prefix(CFG(7.5), steps=10))
    prefix(cfg(7.5), 10)
    """

    steps: int

    def __post_init__(self) -> None:
        super().__post_init__()
        whole(self, "steps", 0)

    def init(self, run: Run) -> Counted:
        """The state before the first step, whose index is not known yet."""
        return Counted(None, self.rule.init(run))

    def asks(self) -> frozenset[Query]:
        """Every query that the wrapped rule may ask for."""
        return self.rule.asks() if self.steps else frozenset()

    def applies(self, step: Step, state: Counted) -> bool:
        """Whether `step` is one of the first `steps` of the run."""
        return step.index - self._first(step, state) < self.steps

    def rule_state(self, state: Counted) -> State:
        """The state of the wrapped rule, a part of this one."""
        return state.inner

    def update(
        self, estimate: Estimate, predictions: Predictions, step: Step, state: Counted
    ) -> tuple[Estimate, Counted]:
        """The update of the wrapped rule in the first steps; afterwards the estimate as it is."""
        inner = state.inner
        if self.applies(step, state):
            estimate, inner = self.rule.update(estimate, predictions, step, inner)
        return estimate, Counted(self._first(step, state), inner)

    def _first(self, step: Step, state: Counted) -> int:
        """The index of the step at which the run began."""
        return step.index if state.first is None else state.first
