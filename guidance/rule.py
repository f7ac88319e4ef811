"""Rule, Estimate and Step: the whole interface that a guidance method implements.

A rule is a frozen dataclass of plain numbers with three pure functions. It holds nothing that changes, so one object
serves any number of runs at once, prints, compares, pickles, and is written to YAML and back.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from .files import RuleFile
from .prediction import Level, Prediction, Space
from .query import Predictions, Queries, Query, RowMask, covered

State = tuple[Any, ...]
"""What a rule remembers between evaluations: a NamedTuple of tensors, or ``()``."""


@dataclass(frozen=True)
class Run:
    """What is known before the first step of a run.

    Args:
        shape: shape of x, batch first.
        dtype: type of the network's outputs.
        device: where they are.
        steps: steps of the scheduler's whole schedule.
        seeds: one number for each sample, from which all randomness of the run is derived; empty if none was given.
        negatives: how many negative prompts each sample has, which answer ``"negative:0"`` and on; empty if it is 1.
        positives: how many positives each sample has beside its prompt, ``"positive:1"`` and on; empty if none has any.
        identity: what a fitted rule is held to, by name: the model's fingerprint, the scheduler, ... Filled where a
            rule has `needs_identity`; None where nothing will run and there is nothing to hold it to: a plan. A value
            is None where it is not known yet and is not to be checked.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    steps: int = 1
    seeds: tuple[int, ...] = ()
    negatives: tuple[int, ...] = ()
    positives: tuple[int, ...] = ()
    identity: Mapping[str, str | None] | None = field(default_factory=dict)

    @property
    def batch(self) -> int:
        """Number of samples B."""
        return self.shape[0]

    def mask(self, samples: Iterable[bool]) -> Tensor:
        """A row mask of these booleans, on the host: no device need be waited for to read it."""
        return torch.tensor(list(samples), dtype=torch.bool)


@dataclass(frozen=True)
class Step:
    """Where a run stands at one evaluation.

    Args:
        run: the run.
        index: step of the sampler, 0 <= index < run.steps. Image-to-image starts in the middle.
        level: level of the samples at this evaluation.
        evaluation: 0 for the first evaluation of a step; solvers such as Heun's have a second one.
        step_level: level at the first evaluation of this step.
        time: the network's time as a share of its training schedule, t/T in [0, 1]; None where the sampler has none.
    """

    run: Run
    index: int
    level: Level
    evaluation: int = 0
    step_level: Level | None = None
    time: float | None = None

    @property
    def progress(self) -> float:
        """``index / steps``, in [0, 1): the share of the schedule that is done when the step begins."""
        return self.index / self.run.steps


@dataclass(frozen=True, eq=False)
class Estimate:
    """What the sampler will be told.

    Args:
        prediction: where to jump.
        renoise: what to re-noise with; None for the noise that `prediction` implies.
        traces: numbers worth reporting, by name: one for each sample, shape ``(B,)``, left on their device.
    """

    prediction: Prediction
    renoise: Prediction | None = None
    traces: Mapping[str, Tensor] = field(default_factory=dict)

    def read(self, space: Space | Literal["any"]) -> Tensor:
        """The prediction in `space`; see `Prediction.read`."""
        return self.prediction.read(space)

    def replace(self, space: Space | Literal["any"], value: Tensor, **traces: Tensor) -> Estimate:
        """The estimate whose prediction reads `value` in `space`, with `traces` added."""
        return Estimate(self.prediction.replace(space, value), self.renoise, {**self.traces, **traces})

    def without_traces(self) -> Estimate:
        """The estimate with nothing reported yet."""
        return Estimate(self.prediction, self.renoise) if self.traces else self

    def where(self, samples: Tensor, other: Estimate) -> Estimate:
        """Take this estimate for `samples`, booleans of shape ``(B,)``, `other` for the rest; traces are both's."""
        renoise = None
        if self.renoise is not None or other.renoise is not None:
            renoise = (self.renoise or self.prediction).where(samples, other.renoise or other.prediction)
        return Estimate(self.prediction.where(samples, other.prediction), renoise, {**other.traces, **self.traces})


class Rule:
    """One guidance method. Subclasses are frozen dataclasses; `register` gives them a name in text and YAML.

    Class attributes:
        space: what `update` reads and writes. ``"any"`` says that the result is the same in every space, as for every
            combination of predictions whose weights sum to one; such a rule works on the network's own output. A rule
            that lets its user choose makes it a field.
        neutral_values: parameters at which the rule does nothing, or None where no parameter does that.
        whole_stack: whether no other rule may stand beside or around it; what it is combined with goes inside.
        needs_identity: whether it wants to know what runs, in `Run.identity`; finding that out costs a little.
        data_dependent: whether what it asks for depends on the predictions, so that a plan made before the run counts
            the most evaluations that the rule may cost and a run may take fewer.
    """

    space: ClassVar[Space | Literal["any"]] = "any"
    neutral_values: ClassVar[Mapping[str, Any] | None] = None
    whole_stack: ClassVar[bool] = False
    needs_identity: ClassVar[bool] = False
    data_dependent: ClassVar[bool] = False

    @property
    def contrast(self) -> Query | None:
        """The query whose answer the rule leads away from; None where it leads away from none."""
        return None

    @property
    def renoises(self) -> bool:
        """Whether the rule sets what the sampler re-noises with."""
        return False

    @property
    def guides_history(self) -> bool:
        """Whether the difference of a second-order solver takes the guided prediction: see `CFGPlusPlus`."""
        return any(part.guides_history for part in self.parts() if part is not self)

    @property
    def refines(self) -> bool:
        """Whether the rule only reshapes what rules before it made, and does nothing where none did."""
        return False

    @property
    def moves(self) -> bool:
        """Whether the rule changes where the sampler jumps, by itself."""
        return not self.refines

    @property
    def skips(self) -> bool:
        """Whether the rule may answer a step without any prediction: see `unasked`. Such a rule is the whole stack."""
        return False

    @property
    def weight_counts(self) -> Mapping[str, int]:
        """How many prompts of a kind the rule has weights for, where it has one weight for each prompt.

        The kinds are ``"negative"``, the negative prompts, and ``"positive"``, the positives beside the prompt. A rule
        with one weight for all of a kind, or without weights, leaves that kind out.
        """
        return {}

    def files(self) -> Mapping[str, RuleFile]:
        """The files that the rule reads when a run begins, by the parameter that names each; none by default.

        Their contents are a part of a sample's address, and files of the user's are saved beside a model.

        Raises:
            InputError: a parameter names no file.
        """
        return {}

    def check_steps(self, steps: int) -> None:
        """Check that the rule can run in a schedule of so many steps; by default it can.

        Raises:
            RuleError: it cannot.
        """
        del steps

    def init(self, run: Run) -> State:
        """The state before the first step."""
        del run
        return ()

    def asks(self) -> frozenset[Query]:
        """Every query that the rule may ask for at some step; what a pipeline must be ready to answer."""
        return frozenset()

    def queries(self, step: Step, state: State) -> Queries:
        """The queries that `update` will read at this step, each with the samples it is wanted for (None: all)."""
        del step, state
        return dict.fromkeys(self.asks())

    def unasked(self, step: Step, state: State) -> RowMask | None:
        """Samples that need no prediction at all at this step, not even the prompt's; None where there are none.

        `update` answers for them out of its state: their rows of the estimate that it is handed are NaN. The mask is on
        the host.
        """
        del step, state
        return None

    def update(self, estimate: Estimate, predictions: Predictions, step: Step, state: State) -> tuple[Estimate, State]:
        """A better estimate, and the state for the next evaluation. Pure: arguments are left as they are."""
        raise NotImplementedError

    def away(self, predictions: Predictions, step: Step, state: State) -> tuple[Prediction, RowMask | None] | None:
        """What the rule leads away from at this step, and which samples it leads (None: all); None where it leads none.

        For whoever measures a run; `update` does not need it. By default the answer to `contrast`, for the samples that
        it is asked for. A rule that puts something else in that answer's place says so here.

        Args:
            predictions: all answers of the evaluation.
            step: where the run stands.
            state: as for `update`.
        """
        if self.contrast is None:
            return None
        asked = self.queries(step, state)
        query = next((query for query in asked if covered(query, {self.contrast})), None)
        return None if query is None else (predictions[query], asked[query])

    def inner(self) -> Iterator[Rule]:
        """The rules that are its parameters, without those inside them."""
        for one in dataclasses.fields(self):  # type: ignore[arg-type]  # every rule is a dataclass
            value = getattr(self, one.name)
            for part in value if isinstance(value, tuple) else (value,):
                if isinstance(part, Rule):
                    yield part

    def parts(self) -> Iterator[Rule]:
        """The rule and the rules inside it, outermost first."""
        yield self
        for part in self.inner():
            yield from part.parts()

    def neutral(self) -> Self:
        """The rule with parameters at which it does nothing.

        Raises:
            NotImplementedError: no parameter turns it off.
        """
        if self.neutral_values is None:
            raise NotImplementedError(f"{type(self).__name__} has no neutral parameters")
        return dataclasses.replace(self, **self.neutral_values)  # type: ignore[type-var]

    def __or__(self, other: Rule) -> Rule:
        """``rule | rule``: the stack of the two, left to right."""
        from .stack import Stack  # the sequence of rules is itself a rule: the two files need one another

        return Stack(self, other) if isinstance(other, Rule) else NotImplemented

    def __str__(self) -> str:
        from .notation.text import to_text

        return to_text(self)
