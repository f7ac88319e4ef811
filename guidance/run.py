"""One run of a stack, for pipelines and the plain sampler: evaluate the queries, apply the rules, count the cost."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from .errors import GuidanceNotAppliedError, NonFiniteError
from .fields import count
from .keyed import Keys
from .move import check_still
from .objective import check_recording
from .observe import Observer, Seen
from .per_sample import own_axes
from .prediction import Level, Prediction, wide
from .query import POSITIVE, Evaluation, Network, Queries, Query, covered, evaluate, united
from .report import Report, StepRecord
from .rule import Stack, objectives_of
from .step import Estimate, Run, State, Step
from .turn import Sight

BLIND = (
    "the run begins at pure noise (alpha 0), where epsilon leaves x0 open; use rescale_betas_zero_snr=False, or a "
    "network that predicts v with prediction_type='v_prediction'"
)
"""Why a run has Inf that no network made."""


class Loop(Protocol):
    """What a sampling loop offers to the turns of rules; see `GuidedRun.moved`."""

    def network(self, x: Tensor, level: Level, keys: Keys) -> Network:
        """Return the network that answers at samples `x`, scaled as `level` says."""
        ...

    def stepped(self, x: Tensor, estimate: Estimate, keys: Keys, ahead: int = 0) -> Tensor:
        """Return the samples after the sampler's step from `x`; the loop itself stays where it is.

        Args:
            x: the samples, at the level of this evaluation or of one `ahead`.
            estimate: the estimate to step with.
            keys: what the random numbers are made from, for a sampler that draws noise.
            ahead: how many steps later in the schedule the step begins.
        """
        ...

    def later(self, step: Step, ahead: int) -> Step:
        """Return the run's position `ahead` steps after `step`; the schedule must have that step."""
        ...


class GuidedRun:
    """One run of a stack: its state from evaluation to evaluation, and the report of what was evaluated.

    Args:
        stack: the stack; never changed, so that any number of runs can share it.
        run: what is known of the run beforehand.
        max_rows: at most this many rows in one network call; None for no bound.
        observe: called after every evaluation; see `observe.Observer`.
        moves: whether the loop calls `moved` before each evaluation, so that rules may take turns.

    Attributes:
        state: the stack's state, a value: store it and set it again to continue a run elsewhere.
        report: the report so far.
        lost: samples that are known to be NaN or Inf. They do not affect the others, and the run goes on.

    Raises:
        InputError: `max_rows` is no number of rows.
        RuleError: the stack is not for this run.
        CompositionError: a rule takes turns, and the loop has no room for them.
    """

    def __init__(
        self,
        stack: Stack,
        run: Run,
        max_rows: int | None = None,
        observe: Observer | None = None,
        moves: bool = False,
    ) -> None:
        if not moves:
            check_still(stack, "this loop")
        self.stack, self.run, self.observe = stack, run, observe
        self.max_rows = None if max_rows is None else count("max_rows", max_rows)
        self.state: State = stack.init(run)
        self.report = Report(str(stack), run.batch)
        self._step_level: Level | None = None
        self._seen: tuple[Tensor, Level, Mapping[Query, Prediction]] | None = None
        self._blind = False
        self._unchecked: list[tuple[Step, list[Query | str], Tensor]] = []
        self.lost: tuple[int, ...] = ()
        self._first_lost = ""

    def estimate(
        self,
        network: Network,
        x: Tensor,
        index: int,
        level: Level,
        evaluation: int = 0,
        time: float | None = None,
        after: Level | None = None,
        before: Level | None = None,
    ) -> Estimate:
        """Evaluate the stack's queries at x and return the guided estimate.

        Args:
            network: the network that answers the queries.
            x: noisy samples, shape ``(B, ...)``.
            index: step of the sampler.
            level: level of `x`.
            evaluation: evaluation within the step.
            time: the network's time as a share of its training schedule.
            after: level at the end of the step.
            before: level at which the step before began; None at the first step of the run.

        Raises:
            NonFiniteError: no sample is finite any more. Where some are, and on an accelerator, `finish` raises it, so
                that no step waits for the device.
            GuidanceNotAppliedError: x is of another batch, or of another size and a rule remembers the former one.
            QueryError: the network cannot answer what the stack asks.
        """
        self._check_shape(x)
        step = self.step(index, level, evaluation, time, after, before)
        done, estimate, state = self._guided(network, x, step)
        earlier, self.state, self._seen = self.state, state, None
        observed: Mapping[str, Tensor] = {}
        if self.observe is not None:
            observed = self.observe(Seen(self.stack, step, earlier, done.predictions, estimate, after))
        self._account(step, done, estimate.traces, observed)
        self._watch(step, done, estimate)
        return estimate

    def step(
        self,
        index: int,
        level: Level,
        evaluation: int = 0,
        time: float | None = None,
        after: Level | None = None,
        before: Level | None = None,
    ) -> Step:
        """Return the position of the run at one evaluation; the arguments are those of `estimate`."""
        # If a run begins at a step's second evaluation, the level there stands for that of the first.
        if evaluation == 0 or self._step_level is None:
            self._step_level = level
        return Step(self.run, index, level, evaluation, self._step_level, time, before, after)

    def _guided(
        self, network: Network, x: Tensor, step: Step, more: Queries | None = None
    ) -> tuple[Evaluation, Estimate, State]:
        """What the stack and `more` ask for at `x`, what the stack makes of it, and its state after that."""
        asked = self.stack.queries(step, self.state)
        if graph := self.stack.differentiated(step, self.state):
            check_recording()
        with torch.set_grad_enabled(graph or torch.is_grad_enabled()):
            done = self._evaluated(network, x, step, united([asked, more]) if more else asked, grad=graph)
            first = Estimate(done.predictions[POSITIVE])
            estimate, state = self.stack.update(first, done.predictions, step, self.state)
        if graph:  # neither the state nor the estimate may keep the graph: it would grow from step to step
            estimate, state = estimate.detached(), _detached(state)
            done = replace(done, predictions=done.predictions.detached())
        # At alpha 0 an epsilon network's x0 is a division by 0: if NaN follows, the error names that as the cause.
        self._blind |= step.level.alpha == 0 and estimate.prediction.parameterization.name == "epsilon"
        return done, estimate, state

    def _evaluated(
        self, network: Network, x: Tensor, step: Step, asked: Queries, base: Query = POSITIVE, grad: bool = False
    ) -> Evaluation:
        """The answers to `asked` and `base` at `x`, with gradients if `grad`."""
        return evaluate(
            network,
            asked,
            x,
            step.level,
            base=base,
            max_rows=self.max_rows,
            unasked=self.stack.unasked(step, self.state),
            dtype=self.run.dtype,
            edits=self.stack.edits(step, self.state),
            known=self._known(x, step.level),
            grad=grad,
        )

    def _known(self, x: Tensor, level: Level) -> Mapping[Query, Prediction]:
        """Return the answers at exactly this x and level since the last step."""
        # By identity: comparing values would wait for the device, and a rule that leaves x alone returns that tensor.
        return self._seen[2] if self._seen and self._seen[0] is x and self._seen[1] == level else {}

    def _account(
        self, step: Step, done: Evaluation, traces: Mapping[str, Tensor], observed: Mapping[str, Tensor]
    ) -> None:
        """Put an evaluation into the report."""
        everyone = tuple(range(done.batch))
        self.report.steps.append(
            StepRecord(
                step.index,
                step.evaluation,
                step.level,
                {query: everyone if rows is None else rows for query, rows in done.asked.items()},
                done.calls,
                done.rows,
                traces,
                observed,
                done.cached,
                step.turn,
            )
        )

    def turns(self, step: Step) -> int:
        """Return how many turns the stack takes before the evaluation at `step`."""
        return self.stack.turns(step, self.state) if self.stack.takes_turns else 0

    def moved(self, loop: Loop, x: Tensor, step: Step) -> Tensor:
        """Take the stack's turns before an evaluation and return the samples; `x` itself if it takes none.

        Args:
            loop: the loop, which answers queries and takes steps.
            x: noisy samples, shape ``(B, ...)``.
            step: where the run stands.

        Raises:
            GuidanceNotAppliedError, QueryError: as in `estimate`.
        """
        for number in range(1, self.turns(step) + 1):
            self._check_shape(x)
            x, self.state = self._turn(loop, x, replace(step, turn=number))
        return x

    def ended(self, x: Tensor, step: Step) -> Tensor:
        """Return the samples that the run ends with, in their own type.

        Args:
            x: the samples after the sampler's last step, shape ``(B, ...)``.
            step: where the run stood at the last evaluation.
        """
        return self.stack.ended(x, step, self.state).to(x.dtype)

    def _turn(self, loop: Loop, x: Tensor, step: Step) -> tuple[Tensor, State]:
        """One turn: the samples, in their type, and the state after it."""
        keys = Keys(self.run.seeds, step.index, step.evaluation, step.turn)
        sight = Sight({}, keys, lambda told: loop.stepped(x, told, keys), after=step.after)
        look = self.stack.look(x, step, self.state)
        if look is not None:
            at, ahead = x if look.x is None else look.x.to(x.dtype), look.ahead
            there = loop.later(step, ahead) if ahead else step
            here = replace(there, level=look.level or there.level)
            network, seen = loop.network(at, here.level, keys), None
            if look.guided:
                done, seen, _ = self._guided(network, at, here, look.queries)
            else:
                done = self._evaluated(network, at, here, look.queries, look.base)
            if at is x and here.level == step.level:
                self._seen = at, here.level, {**self._known(at, here.level), **done.complete}
            self._account(replace(here, index=step.index), done, {}, {})
            sight = replace(sight, predictions=done.predictions.only(look.queries, self.stack), seen=seen)
            if ahead:
                sight = replace(sight, steps=lambda told: loop.stepped(at, told, keys, ahead), after=there.after)
        moved, state = self.stack.turn(x, sight, step, self.state)
        return moved.to(x.dtype), state

    def _watch(self, step: Step, done: Evaluation, estimate: Estimate) -> None:
        """Check the estimate for NaN and Inf; on an accelerator keep a few numbers to check when the run is over."""
        native = estimate.prediction.native
        if native.device.type == "cpu" and math.isfinite(native.detach().sum(dtype=wide(native.dtype))):
            return  # a sum is the cheapest pass; it is finite unless a number is not, or it overflows by itself
        steered = [name for name in estimate.traces if name.startswith("log_f")]
        queries: list[Query | str] = [*done.predictions, *steered]
        answers = [done.predictions[query].native for query in done.predictions]
        found = [_largest(one) for one in (estimate.prediction.x, *answers, native)]
        found[-1:-1] = [estimate.traces[name].abs() for name in steered]
        seen = (step, queries, torch.stack(found))
        if native.device.type != "cpu":  # reading a number would wait for the device at every step
            self._unchecked.append(seen)
            return
        self._look(*seen)
        if len(self.lost) == self.run.batch:
            raise self.error()

    def finish(self) -> Report:
        """Return the report of the run, after its last step, and check that all samples are finite.

        Raises:
            NonFiniteError: NaN or Inf in a sample, naming the first step that had it. The other samples are finite.
        """
        pending, self._unchecked = self._unchecked, []
        if pending:
            sizes = torch.cat([seen for _, _, seen in pending]).cpu()  # the one wait of a run
            for step, queries, seen in pending:
                here, sizes = sizes[: len(seen)], sizes[len(seen) :]
                self._look(step, queries, here)
        if self.lost:
            raise self.error()
        return self.report

    def error(self) -> NonFiniteError:
        """Return the error for the samples that are NaN or Inf, with a message of one line."""
        others = self.run.batch - len(self.lost)
        kept = f"; the other samples of {self.run.batch} are finite" if others else ""
        return NonFiniteError(f"{self._first_lost}; lost: samples {list(self.lost)}{kept}", self.lost)

    def _look(self, step: Step, queries: list[Query | str], largest: Tensor) -> None:
        """Note which samples are lost, given the largest numbers of x, of each answer and last of the estimate."""
        broken = [{sample for sample, size in enumerate(row) if not math.isfinite(size)} for row in largest.tolist()]
        new = broken[-1].difference(self.lost)
        if not new:
            return
        if not self.lost:
            answers = {query: rows & new for query, rows in zip(queries, broken[1:], strict=False)}
            self._first_lost = self._cause(step, broken[0] & new, answers)
        self.lost = tuple(sorted({*self.lost, *new}))

    def _cause(self, step: Step, handed: set[int], broken: Mapping[Query | str, set[int]]) -> str:
        """Where the first lost samples come from, given which are not finite in x and in each answer."""
        where = f"step {step.index} of {self.run.steps} (sigma/alpha {step.level.k_sigma:.4g})"
        if handed:
            return (
                f"NaN or Inf at {where} in what the sampler handed over, before the network was asked; "
                f"{BLIND if self._blind else 'try another sampler, a smaller scale or a wider dtype'}"
            )
        query = next((query for query, samples in broken.items() if samples), None)
        if isinstance(query, str):
            names = ", ".join(map(repr, objectives_of(self.stack)))
            return (
                f"NaN or Inf at {where} in what the objective {names} returned; give it numbers that stay finite, "
                "such as logsumexp in place of log(sum(exp))"
            )
        if query is None:
            overflowed = "the network's answers were finite, the rules overflowed; try a smaller scale or a wider dtype"
            return (
                f"NaN or Inf at {where} in the guided estimate of {self.stack}: {BLIND if self._blind else overflowed}"
            )
        askers = [str(rule) for rule in self.stack.rules if covered(query, rule.asks())] or ["the unguided model"]
        return (
            f"NaN or Inf at {where} in the network's answer to {str(query)!r}, asked by {', '.join(askers)}; try a "
            "wider dtype (float32) or another sampler"
        )

    def _check_shape(self, x: Tensor) -> None:
        """Check that samples still have the run's shape, which a callback may have changed.

        Raises:
            GuidanceNotAppliedError: they have another.
        """
        before, now = self.run.shape, tuple(x.shape)
        if now == before:
            return
        if now[0] != before[0]:
            raise GuidanceNotAppliedError(
                f"the run began with {before[0]} samples and goes on with {now[0]}: the batch stays as it is until a "
                "run ends; begin another call with the others"
            )
        for rule, own in zip(self.stack.rules, self.state, strict=True):
            if any(value.shape[1:] == before[1:] and value.ndim > 1 for value in _tensors(own)):
                raise GuidanceNotAppliedError(
                    f"{rule} remembers samples of shape {before[1:]} from earlier steps, and the run goes on with "
                    f"{now[1:]}: was something resized in a callback? Begin another call with the new size, or take a "
                    "rule that remembers nothing, such as cfg(scale)"
                )


def _detached(state: Any) -> Any:
    """A state without graphs of gradients behind its tensors."""
    if isinstance(state, Tensor):
        return state.detach()
    if isinstance(state, Prediction):
        return state.detached()
    if isinstance(state, tuple):
        parts = map(_detached, state)
        return type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)
    return state


def _tensors(state: Any) -> Iterator[Tensor]:
    """The tensors of a state."""
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, tuple):
        for one in state:
            yield from _tensors(one)


def _largest(value: Tensor) -> Tensor:
    """The largest size of each sample's numbers, Inf or NaN where one is: one pass, and no overflow."""
    size: Tensor = torch.linalg.vector_norm(value.detach(), torch.inf, dim=own_axes(value))
    return size
