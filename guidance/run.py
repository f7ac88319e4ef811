"""One run of a stack: evaluate, improve, account. What pipelines and the plain sampler have in common."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NoReturn

import torch
from torch import Tensor

from .errors import NonFiniteError
from .observe import Observer, Seen
from .per_sample import own_axes
from .prediction import Level, wide
from .query import POSITIVE, Evaluation, Network, Query, covered, evaluate
from .report import Report, StepRecord
from .rule import Estimate, Run, State, Step
from .stack import Stack


class GuidedRun:
    """Carries a stack's state from evaluation to evaluation and keeps the account.

    Args:
        stack: the stack; never changed, so that any number of runs can share it.
        run: what is known beforehand.
        max_rows: at most this many rows in one network call; None for no bound.
        observe: told of every evaluation; see `observe.Observer`.

    Attributes:
        state: the stack's state, a value: store it and set it again to go on with a run elsewhere.
        report: the account so far.
    """

    def __init__(self, stack: Stack, run: Run, max_rows: int | None = None, observe: Observer | None = None) -> None:
        self.stack, self.run, self.max_rows, self.observe = stack, run, max_rows, observe
        self.state: State = stack.init(run)
        self.report = Report(str(stack), run.batch)
        self._step_level: Level | None = None
        self._unchecked: list[tuple[Step, list[Query], Tensor]] = []

    def estimate(
        self,
        network: Network,
        x: Tensor,
        index: int,
        level: Level,
        evaluation: int = 0,
        time: float | None = None,
        after: Level | None = None,
    ) -> Estimate:
        """The guided estimate at one evaluation.

        Args:
            network: who answers the queries.
            x: noisy samples, shape ``(B, ...)``.
            index: step of the sampler.
            level: level of `x`.
            evaluation: evaluation within the step.
            time: the network's time as a share of its training schedule.
            after: level at the end of the step, for who observes the run.

        Raises:
            NonFiniteError: NaN or Inf in a prediction or in the estimate; on an accelerator it is raised by `finish`,
                so that no step waits for the device.
            QueryError: the network cannot answer what the stack asks.
        """
        if evaluation == 0 or self._step_level is None:
            self._step_level = level
        step = Step(self.run, index, level, evaluation, self._step_level, time)
        asked, unasked = self.stack.queries(step, self.state), self.stack.unasked(step, self.state)
        done = evaluate(network, asked, x, level, max_rows=self.max_rows, unasked=unasked, dtype=self.run.dtype)
        first = Estimate(done.predictions[POSITIVE])
        before = self.state
        estimate, self.state = self.stack.update(first, done.predictions, step, before)
        observed: Mapping[str, Tensor] = {}
        if self.observe is not None:
            observed = self.observe(Seen(self.stack, step, before, done.predictions, estimate, after))
        everyone = tuple(range(done.batch))
        self.report.steps.append(
            StepRecord(
                index,
                evaluation,
                level,
                {query: everyone if rows is None else rows for query, rows in done.asked.items()},
                done.calls,
                done.rows,
                estimate.traces,
                observed,
            )
        )
        self._watch(step, done, estimate)
        return estimate

    def _watch(self, step: Step, done: Evaluation, estimate: Estimate) -> None:
        """Look at the estimate; on an accelerator note what to look at when the run is over, in a few numbers."""
        native = estimate.prediction.native
        if native.device.type == "cpu" and math.isfinite(native.detach().sum(dtype=wide(native.dtype))):
            return  # a sum is the cheapest pass; it is finite unless a number is not, or it overflows by itself
        queries = list(done.predictions)
        answers = [done.predictions[query].native for query in queries]
        seen = (step, queries, torch.stack([_largest(answer) for answer in (*answers, native)]))
        if native.device.type != "cpu":
            self._unchecked.append(seen)
        elif not torch.isfinite(seen[2][-1]).all():
            self._fail(*seen)

    def finish(self) -> Report:
        """The account, after the last step.

        Raises:
            NonFiniteError: NaN or Inf on an accelerator, naming the first step that had it.
        """
        pending, self._unchecked = self._unchecked, []
        if pending:
            sizes = torch.cat([seen for _, _, seen in pending]).cpu()  # the one wait of a run
            for step, queries, seen in pending:
                here, sizes = sizes[: len(seen)], sizes[len(seen) :]
                if not torch.isfinite(here[-1]).all():
                    self._fail(step, queries, here)
        return self.report

    def _fail(self, step: Step, queries: list[Query], largest: Tensor) -> NoReturn:
        """Say what is not finite, given the largest numbers of each answer's samples and of the estimate's, last."""
        where = f"step {step.index} of {self.run.steps} (sigma/alpha {step.level.k_sigma:.4g})"
        broken = [[sample for sample, size in enumerate(row) if not math.isfinite(size)] for row in largest.tolist()]
        for query, samples in zip(queries, broken, strict=False):
            if samples:
                askers = [str(rule) for rule in self.stack.rules if covered(query, rule.asks())] or [
                    "the unguided model"
                ]
                raise NonFiniteError(
                    f"NaN or Inf at {where} in the network's answer to {str(query)!r}, asked by {', '.join(askers)}, "
                    f"samples {samples}; try a wider dtype (float32) or another sampler"
                )
        raise NonFiniteError(
            f"NaN or Inf at {where} in the guided estimate of {self.stack}, samples {broken[-1]}: the "
            "network's answers were finite, the rules overflowed; try a smaller scale or a wider dtype"
        )


def _largest(value: Tensor) -> Tensor:
    """The largest size of each sample's numbers, Inf or NaN where one is: one pass, and no overflow."""
    size: Tensor = torch.linalg.vector_norm(value.detach(), torch.inf, dim=own_axes(value))
    return size
