"""Turns: evaluations that a rule asks for before the sampler's own, at points of its choice, and how it changes x.

A rule that only reads predictions at the sampler's x needs none of this. One that does more takes *turns* before an
evaluation. In each turn it returns a request (`Look`), gets the answers (`Sight`), and returns x:

* A **move** returns another x at the same level: a corrector (`Langevin`), a step that is taken again (`Recur`).
* A rule with a **second round** asks at another (x, level), keeps the answers in its state, returns x as it is and uses
  its state in `update`.

The sampler's own evaluation follows at the x that the last turn returned. What was answered in a turn at that very x is
not evaluated again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from .keyed import Keys, normal
from .prediction import Level, Prediction, wide
from .query import POSITIVE, Queries, Query
from .step import Estimate


@dataclass(frozen=True, eq=False)
class Look:
    """The request of a turn: the queries to evaluate, and at which x and level.

    Args:
        queries: what is asked, each with the samples it is wanted for (None: all). "positive" is evaluated if it is
            among them, or if `guided`.
        guided: whether the estimate of the whole stack is wanted too, which costs what the stack asks for.
        x: where, shape ``(B, ...)``, scaled as `level` says; None for the samples where they are.
        level: of x; None for the level of the step.
        ahead: evaluate this many steps later in the sampler's schedule: with the stack's queries and the level of that
            step, from which `Sight.steps` then steps. The schedule must have that step.
    """

    queries: Queries = field(default_factory=dict)
    guided: bool = False
    x: Tensor | None = None
    level: Level | None = None
    ahead: int = 0

    @property
    def base(self) -> Query:
        """The query whose answer fills the rows that are not asked for: the prompt, or the first query asked."""
        return next(iter(self.queries)) if self.queries and POSITIVE not in self.queries else POSITIVE


@dataclass(frozen=True, eq=False)
class Sight:
    """The answers to the request of a turn, and the sampler's own step.

    Attributes:
        predictions: the answers to the queries of `Look`.
        keys: what this turn's random numbers are made from.
        steps: the sampler's own step, as a function of an estimate; from the current samples, or from those of the turn
            if it asked at a step `Look.ahead`.
        seen: the stack's estimate at the turn's (x, level); None if `Look.guided` did not ask for it.
        after: the level that `steps` leads to; None where it is not known.
    """

    predictions: Mapping[Query, Prediction]
    keys: Keys
    steps: Callable[[Estimate], Tensor]
    seen: Estimate | None = None
    after: Level | None = None

    @property
    def estimate(self) -> Estimate:
        """The stack's estimate at the turn's (x, level), for a turn that asked for it by `Look.guided`."""
        assert self.seen is not None  # `Look.guided` asks for it
        return self.seen

    def noise(self, like: Tensor, purpose: str) -> Tensor:
        """Standard normal numbers of the shape of `like`, in float32 or better: each sample's from its own seed."""
        drawn = normal(self.keys.generators(range(len(like)), purpose), like.shape[1:], like.device)
        return drawn.to(wide(like.dtype))
