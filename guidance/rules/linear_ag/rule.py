"""LinearAG: the contrast estimated from the predictions so far instead of evaluated (Castillo et al. 2023)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ...errors import CompositionError, RuleError, shown
from ...fields import set_field
from ...files import RuleFile
from ...notation.registry import register
from ...prediction import Prediction
from ...query import NEGATIVE, NULL, POSITIVE, Predictions, Queries, Query, RowMask
from ...rule import Rule, Wrapper, sole
from ...step import Estimate, Run, State, Step
from ..adaptive import CASTILLO_2023
from . import fit as linear

GUIDED, ESTIMATED, CONDITIONAL = "g", "e", "c"
PAPER = "paper"
WORDS = {"negative": "negative prompt", "levels": "noise levels"}
EMPTY = frozenset({NEGATIVE, NULL})
"""Without a negative prompt, and a fit is for runs without, both are the empty prompt."""


class Recording(NamedTuple):
    """The predictions of the steps so far, which LinearAG remembers, and a run that it is fitted on.

    Attributes:
        c: noise predictions for the prompt, one a step, shape ``(B, ...)``, float32 or better.
        u: those for the contrast; None at a step that did not evaluate it.
        done: steps done.
        triangle: the fit's triangle on the host; empty where nothing is estimated.
        inner: the state of the wrapped rule.
    """

    c: tuple[Tensor, ...]
    u: tuple[Tensor | None, ...]
    done: int
    triangle: Tensor
    inner: State


def letters(policy: str, steps: int) -> str:
    """What is done at each step: ``"g"`` guided, ``"e"`` guided with an estimated contrast, ``"c"`` conditional only.

    Args:
        policy: ``"paper"``, or the letters themselves.
        steps: of the run.

    Raises:
        RuleError: another number of letters than of steps.

    >>> letters("paper", 20)
    'gegegegegecccccccccc'
    """
    if policy == PAPER:
        half = steps // 2
        return (GUIDED + ESTIMATED) * (half // 2) + GUIDED * (half % 2) + CONDITIONAL * (steps - half)
    if len(policy) != steps:
        raise RuleError(
            f"LinearAG: policy {policy!r} has {len(policy)} letters and the run {steps} steps; give one each"
        )
    return policy


def plain_contrast(rule: Rule) -> Query:
    """The contrast of `rule`, of which there is a history to estimate from.

    Raises:
        RuleError: it has none, or one of another kind.
    """
    contrast = rule.contrast
    if contrast is None:
        raise RuleError(f"LinearAG estimates what its rule guides away from, and {rule} guides away from nothing")
    reasons = {
        "a perturbed network": contrast.perturbation is not None,
        "another network": contrast.model != "main",
        "a condition drawn anew at every step": contrast.condition.startswith("independent"),
        "the prompt itself": contrast.condition == POSITIVE.condition,
        "a prediction with gradients": contrast.grad,
    }
    for reason, wrong in reasons.items():
        if wrong:
            raise RuleError(
                f"LinearAG: {rule} guides away from {str(contrast)!r}, {reason}; it takes rules against a fixed "
                "condition of the main network, such as cfg(4)"
            )
    for part in rule.parts():
        if part.data_dependent:
            raise CompositionError(
                f"LinearAG around {rule}: {part} stops evaluating the contrast sample by sample, and an estimate needs "
                "it of all; keep one of the two"
            )
    return contrast


def _at(step: Step, state: Recording, who: str) -> int:
    """Index of the step.

    Raises:
        RuleError: the run is not one of whole steps from the first on.
    """
    if step.evaluation:
        raise RuleError(
            f"{who} is fitted on one evaluation a step, and this sampler has two; take another, such as dpm++2m"
        )
    if step.index != state.done:
        raise RuleError(
            f"{who} is fitted on whole runs and needs all steps before; this run is at step {step.index} after "
            f"{state.done} steps (image-to-image begins in the middle)"
        )
    return step.index


@register(
    "linear_ag",
    references=(CASTILLO_2023,),
    example="linear_ag(cfg(4), 'emoji-cfg4-20')",
)
@dataclass(frozen=True)
class LinearAG(Wrapper[Recording]):
    r"""LinearAG: apply `rule` with its contrast estimated, at some steps, from all predictions so far.

    .. math:: \hat\epsilon_u(x_i) = \sum_{j \le i} \beta^c_{ij}\, \epsilon_c(x_j) + \sum_{j < i} \beta^u_{ij}\,
              \epsilon_u(x_j)

    in noise predictions, with one number for each pair of steps, fitted by least squares on runs of `rule`; the second
    sum is over the steps whose contrast was evaluated. An estimate is itself a sum of these predictions: to put
    estimates among the regressors would add nothing.

    Args:
        rule: any rule that guides away from a fixed condition of the main network, a stack included. What LinearAG is
            combined with goes in here: coefficients are true of the runs they were fitted on.
        coefficients: name of a fit that comes with guidestack, or a path that ends in ``.safetensors``;
            ``guidestack fit-linear-ag`` makes these. Read when a run begins. It is good for one model, scheduler with
            its steps and levels, and rule, and for runs without a negative prompt; elsewhere the run is refused.
        policy: a letter for each step: ``g`` applies the rule as it is, ``e`` applies it with the contrast estimated,
            ``c`` nothing. ``"paper"`` alternates g and e in the first half and is c in the second.

    Queries: those of `rule`, without the contrast at steps e; none at steps c. ``"paper"`` costs 25 evaluations in 20
    steps of CFG, which by itself costs 40.

    State: all predictions so far in noise, float32 or better, as long as an estimate is still to come; the fit's
    triangle; the state of `rule`. Trace ``estimated`` (1 or 0).

    Raises:
        RuleError: at construction, the contrast of `rule` has no history to estimate from; when a run begins, it is not
            the run that the coefficients are for; later, the sampler evaluates twice a step.
        InputError: when a run begins, there is no such file, or it is none.

    References:
        Castillo et al., "Adaptive Guidance: Training-free Acceleration of Conditional Diffusion Models",
        arXiv:2312.12487, LinearAG.

    >>> from guidestack import CFG, LinearAG
    >>> print(LinearAG(CFG(4), "mine.safetensors", policy="gegccc"))
    linear_ag(cfg(4), 'mine.safetensors', policy='gegccc')
    """

    whole_stack: ClassVar[bool] = True  # under other rules the runs are not those of the fit
    needs_identity: ClassVar[bool] = True

    coefficients: str
    policy: str = PAPER

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.coefficients, str) or not self.coefficients:
            raise RuleError(
                f"LinearAG: coefficients is the name of a fit or the path of a {linear.SUFFIX} file, as text; got "
                f"{shown(self.coefficients)}"
            )
        policy = self.policy
        if not isinstance(policy, str) or not policy or (policy != PAPER and set(policy) - {"g", "e", "c"}):
            raise RuleError(
                f"LinearAG: policy is {PAPER!r} or a letter for each step, g guided, e estimated, c conditional; got "
                f"{shown(policy)}"
            )
        for name in ("coefficients", "policy"):
            set_field(self, name, str(getattr(self, name)))  # numpy's texts are written in another way
        plain_contrast(self.rule)

    @property
    def contrast(self) -> Query:
        """The contrast of the wrapped rule, which is estimated at some steps."""
        return plain_contrast(self.rule)

    def files(self) -> Mapping[str, RuleFile]:
        """The file of coefficients, by the name of the parameter.

        Raises:
            InputError: no fit that comes with guidestack has this name.
        """
        bundled = not self.coefficients.endswith(linear.SUFFIX)
        return {"coefficients": RuleFile(linear.locate(self.coefficients), linear.read, bundled)}

    @cached_property
    def _estimated(self) -> frozenset[Query]:
        """The queries that an estimate stands in for."""
        return EMPTY if self.contrast in EMPTY else frozenset({self.contrast})

    @cached_property
    def _idle(self) -> bool:
        """Whether the rule asks for no contrast, as cfg(1): then there is nothing to estimate, and no file is read."""
        return not self.rule.asks() & self._estimated

    def init(self, run: Run) -> Recording:
        """The state before the first step; the coefficients are read and checked against the run.

        Raises:
            RuleError: the coefficients are not for this run.
            InputError: the file cannot be read.
        """
        triangle = torch.zeros(0, 0, dtype=torch.float64)
        if not self._idle:
            fit = linear.read(linear.locate(self.coefficients))
            self._check(fit, run)
            letters(self.policy, run.steps)
            triangle = fit.triangle
        return Recording((), (), 0, triangle, self.rule.init(run))

    def _check(self, fit: linear.Fit, run: Run) -> None:
        """Refuse a run that the fit is not for.

        Raises:
            RuleError: saying in what the two differ.
        """
        pairs: dict[str, tuple[str, str | None]]
        pairs = {"steps": (str(fit.steps), str(run.steps)), "rule": (fit.rule, str(self.rule))}
        if run.identity is not None:  # a plan has none
            # The levels last: another scheduler has others.
            for name in sorted(fit.valid, key=lambda name: (name == "levels", name)):
                if run.identity.get(name, "") is None:
                    continue  # not known yet
                pairs[name] = (fit.valid[name], run.identity.get(name))
        for name, (there, here) in pairs.items():
            if there != here:
                if here is None:
                    what = f"and this run does not say its {name}: guidestack.sample takes identity={{{name!r}: ...}}"
                else:
                    what = f"and this run has {here!r}; fit for it with guidestack fit-linear-ag"
                word = WORDS.get(name, name)
                raise RuleError(f"linear_ag: {self.coefficients!r} was fitted for the {word} {there!r} {what}")

    def asks(self) -> frozenset[Query]:
        """The prompt, and every query that the wrapped rule may ask for."""
        return self.rule.asks() if self._idle else self.rule.asks() | {POSITIVE}

    def _letter(self, step: Step, state: Recording) -> tuple[str, bool]:
        """What is done at this step, and whether an estimate is still to come after it."""
        policy = letters(self.policy, step.run.steps)
        index = _at(step, state, "linear_ag")
        return policy[index], ESTIMATED in policy[index + 1 :]

    def queries(self, step: Step, state: Recording) -> Queries:
        """The prompt, and the queries of the wrapped rule, at an estimated step without the contrast."""
        if self._idle:
            return self.rule.queries(step, state.inner)
        letter, later = self._letter(step, state)
        asked = dict(self.rule.queries(step, state.inner)) if letter != CONDITIONAL else {}
        if letter == ESTIMATED:
            asked = {query: rows for query, rows in asked.items() if query not in self._estimated}
        if later or letter == ESTIMATED:
            asked[POSITIVE] = None
        return asked

    def update(
        self, estimate: Estimate, predictions: Predictions, step: Step, state: Recording
    ) -> tuple[Estimate, Recording]:
        """The update of the wrapped rule, at an estimated step with the estimate as the answer to the contrast."""
        if self._idle:
            guided, inner = self.rule.update(estimate, predictions, step, state.inner)
            return guided, state._replace(inner=inner)
        letter, later = self._letter(step, state)
        asked = self.rule.queries(step, state.inner) if letter != CONDITIONAL else {}
        wanted = [query for query in asked if query in self._estimated]
        if any(asked[query] is not None for query in wanted):
            raise RuleError(
                f"linear_ag: {self.rule} asks for {str(self.contrast)!r} of some samples only, and an estimate needs "
                "it of all; put another rule inside"
            )
        estimated = letter == ESTIMATED and bool(wanted)
        there = {query: rows for query, rows in asked.items() if not (estimated and query in wanted)}
        answers = predictions.only(there, str(self.rule))
        c, u = state.c, state.u
        if later or letter == ESTIMATED:
            now = predictions[POSITIVE]
            c = (*c, _noise(now))
            if estimated:
                guess = now.replace("noise", _combined(c, u, state.triangle))
                for query in wanted:
                    answers = answers.given(query, guess)
            u = (*u, _noise(predictions[wanted[0]]) if letter == GUIDED and wanted else None)
        if not later:
            c, u = (), ()  # nobody will read them
        inner = state.inner
        if letter != CONDITIONAL:
            estimate, inner = self.rule.update(estimate, answers, step, inner)
        device = estimate.prediction.native.device
        mark = torch.full((step.run.batch,), float(estimated), dtype=torch.float32, device=device)
        estimate = dataclasses.replace(estimate, traces={**estimate.traces, "estimated": mark})
        return estimate, Recording(c, u, state.done + 1, state.triangle, inner)

    def rule_state(self, state: Recording) -> State:
        """The state of the wrapped rule, a part of this one."""
        return state.inner

    def away(self, predictions: Predictions, step: Step, state: Recording) -> tuple[Prediction, RowMask | None] | None:
        """Return what the wrapped rule guides away from; at an estimated step the estimate of it."""
        letter = GUIDED if self._idle else self._letter(step, state)[0]
        if letter == CONDITIONAL:
            return None
        if letter == ESTIMATED:
            now = predictions[POSITIVE]
            guess = now.replace("noise", _combined((*state.c, _noise(now)), state.u, state.triangle))
            for query in self._estimated & self.rule.queries(step, state.inner).keys():
                predictions = predictions.given(query, guess)
        return self.rule.away(predictions, step, state.inner)


def _noise(prediction: Prediction) -> Tensor:
    """The noise in memory of its own: that of a network's output may be used again for the next one."""
    noise = prediction.noise
    return torch.clone(noise) if noise is prediction.native else noise


def _combined(c: Sequence[Tensor], u: Sequence[Tensor | None], triangle: Tensor) -> Tensor:
    """The equation: u at the step of the last c."""
    index, steps = len(c) - 1, len(triangle) // 2
    guided = [j < index and u[j] is not None for j in range(steps)]
    columns = linear.regressors(index, guided)
    weights = linear.solved(triangle, steps + index, columns)
    known = [*c, *(value for value in u if value is not None)]
    total = torch.zeros_like(known[0])
    for weight, value in zip(weights, known, strict=True):
        total = total + weight * value
    return total


@dataclass(frozen=True)
class Recorded(Wrapper[Recording]):
    """A rule as it is, in a run that keeps all noise predictions in its state, for a fit of LinearAG.

    Queries: those of `rule`, and at every step the prompt and the contrast.

    It has no name and no text of its own; it is made by whoever fits.
    """

    whole_stack: ClassVar[bool] = True
    needs_identity: ClassVar[bool] = True

    def __post_init__(self) -> None:
        set_field(self, "rule", sole(self.rule, "linear_ag"))
        plain_contrast(self.rule)

    def __str__(self) -> str:
        return str(self.rule)

    @property
    def contrast(self) -> Query:
        """The contrast of the wrapped rule."""
        return plain_contrast(self.rule)

    def init(self, run: Run) -> Recording:
        """The state before the first step, in which nothing is recorded."""
        return Recording((), (), 0, torch.zeros(0, 0, dtype=torch.float64), self.rule.init(run))

    def asks(self) -> frozenset[Query]:
        """The prompt, the contrast, and every query that the wrapped rule may ask for."""
        return self.rule.asks() | {POSITIVE, self.contrast}

    def rule_state(self, state: Recording) -> State:
        """The state of the wrapped rule, a part of this one."""
        return state.inner

    def queries(self, step: Step, state: Recording) -> Queries:
        """The queries of the wrapped rule, with the prompt and the contrast for all samples."""
        return {**self.rule.queries(step, state.inner), POSITIVE: None, self.contrast: None}

    def update(
        self, estimate: Estimate, predictions: Predictions, step: Step, state: Recording
    ) -> tuple[Estimate, Recording]:
        """The update of the wrapped rule, while both predictions are recorded."""
        index = _at(step, state, "linear_ag")
        c, u = (_noise(predictions[query]) for query in (POSITIVE, self.contrast))
        answers = predictions.only(self.rule.queries(step, state.inner), str(self.rule))
        estimate, inner = self.rule.update(estimate, answers, step, state.inner)
        return estimate, Recording((*state.c, c), (*state.u, u), index + 1, state.triangle, inner)
