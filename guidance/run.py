"""One run of a stack: evaluate, improve, account. What pipelines and the plain sampler have in common."""

from __future__ import annotations

import torch
from torch import Tensor

from .errors import NonFiniteError
from .prediction import Level
from .query import POSITIVE, Evaluation, Network, covered, evaluate
from .report import Report, StepRecord
from .rule import Estimate, Run, State, Step
from .stack import Stack


class GuidedRun:
    """Carries a stack's state from evaluation to evaluation and keeps the account.

    Args:
        stack: the stack; never changed, so that any number of runs can share it.
        run: what is known beforehand.
        max_rows: at most this many rows in one network call; None for no bound.

    Attributes:
        state: the stack's state, a value: store it and set it again to go on with a run elsewhere.
        report: the account so far.
    """

    def __init__(self, stack: Stack, run: Run, max_rows: int | None = None) -> None:
        self.stack, self.run, self.max_rows = stack, run, max_rows
        self.state: State = stack.init(run)
        self.report = Report(str(stack), run.batch)
        self._step_level: Level | None = None
        self._unchecked: list[tuple[Step, Evaluation, Estimate, Tensor]] = []

    def estimate(
        self,
        network: Network,
        x: Tensor,
        index: int,
        level: Level,
        evaluation: int = 0,
        time: float | None = None,
    ) -> Estimate:
        """The guided estimate at one evaluation.

        Args:
            network: who answers the queries.
            x: noisy samples, shape ``(B, ...)``.
            index: step of the sampler.
            level: level of `x`.
            evaluation: evaluation within the step.
            time: the network's time as a share of its training schedule.

        Raises:
            NonFiniteError: NaN or Inf in a prediction or in the estimate; on an accelerator it is raised by `finish`,
                so that no step waits for the device.
            QueryError: the network cannot answer what the stack asks.
        """
        if evaluation == 0 or self._step_level is None:
            self._step_level = level
        step = Step(self.run, index, level, evaluation, self._step_level, time)
        done = evaluate(network, self.stack.queries(step, self.state), x, level, max_rows=self.max_rows)
        first = Estimate(done.predictions[POSITIVE])
        estimate, self.state = self.stack.update(first, done.predictions, step, self.state)
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
            )
        )
        self._watch(step, done, estimate)
        return estimate

    def _watch(self, step: Step, done: Evaluation, estimate: Estimate) -> None:
        finite = torch.isfinite(estimate.prediction.native).all()
        if finite.device.type != "cpu":
            self._unchecked.append((step, done, estimate, finite))
        elif not finite:
            self._fail(step, done, estimate)

    def finish(self) -> Report:
        """The account, after the last step.

        Raises:
            NonFiniteError: NaN or Inf on an accelerator, naming the first step that had it.
        """
        pending, self._unchecked = self._unchecked, []
        for step, done, estimate, finite in pending:
            if not finite:
                self._fail(step, done, estimate)
        return self.report

    def _fail(self, step: Step, done: Evaluation, estimate: Estimate) -> None:
        where = f"step {step.index} of {self.run.steps} (sigma/alpha {step.level.k_sigma:.4g})"
        for query, prediction in done.predictions.items():
            if samples := _broken(prediction.native):
                askers = [str(rule) for rule in self.stack.rules if covered(query, rule.asks())] or [
                    "the unguided model"
                ]
                raise NonFiniteError(
                    f"NaN or Inf at {where} in the network's answer to {str(query)!r}, asked by {', '.join(askers)}, "
                    f"samples {samples}; try a wider dtype (float32) or another sampler"
                )
        samples = _broken(estimate.prediction.native)
        raise NonFiniteError(
            f"NaN or Inf at {where} in the guided estimate of {self.stack}, samples {samples}: the "
            "network's answers were finite, the rules overflowed; try a smaller scale or a wider dtype"
        )


def _broken(value: Tensor) -> list[int]:
    finite = torch.isfinite(value).flatten(1).all(1)
    return [int(sample) for sample in (~finite).nonzero().flatten()]
