"""Turns: what a rule evaluates before the sampler's own evaluation, wherever it likes, and how it changes x between.

A rule that only reads predictions at the sampler's x needs none of this. One that does more takes *turns* before an
evaluation. In each turn it says where it looks (`Look`), is shown the answers (`Sight`), and returns x:

* A **move** returns another x at the same level: a corrector (`Langevin`), a step that is taken again (`Recur`).
* A rule with a **second round** looks elsewhere, at an (x, level) of its own, keeps what it saw in its state, returns x
  as it is and uses its state in `update`.

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
    """What a turn has evaluated, and where.

    Args:
        queries: what is asked, each with the samples it is wanted for (None: all). "positive" is evaluated if it is
            among them, or if `guided`.
        guided: whether the estimate of the whole stack is wanted too, which costs what the stack asks for.
        x: where, shape ``(B, ...)``, scaled as `level` says; None for the samples where they are.
        level: of x; None for the level of the step.
        ahead: how many steps later in the sampler's schedule: the stack is asked as it is there, at the level that the
            sampler has there, and `Sight.steps` is the sampler's step from there. The schedule has that step.
    """

    queries: Queries = field(default_factory=dict)
    guided: bool = False
    x: Tensor | None = None
    level: Level | None = None
    ahead: int = 0

    @property
    def base(self) -> Query:
        """The query that rows read which are not asked for: the prompt, or the first that is asked."""
        return next(iter(self.queries)) if self.queries and POSITIVE not in self.queries else POSITIVE


@dataclass(frozen=True, eq=False)
class Sight:
    """What a turn is shown.

    Attributes:
        predictions: the answers to what it asked for.
        keys: where its randomness comes from: of this turn alone.
        steps: the sampler's own step, given an estimate: from the samples where they are, or where the turn looked if
            that was a step `Look.ahead`.
        seen: the stack's estimate where the turn looked; None where it did not ask for one.
        after: the level that `steps` leads to; None where it is not known.
    """

    predictions: Mapping[Query, Prediction]
    keys: Keys
    steps: Callable[[Estimate], Tensor]
    seen: Estimate | None = None
    after: Level | None = None

    @property
    def estimate(self) -> Estimate:
        """The stack's estimate; a turn that reads it has asked for it."""
        assert self.seen is not None  # `Look.guided` asks for it
        return self.seen

    def noise(self, like: Tensor, purpose: str) -> Tensor:
        """Standard normal numbers of the shape of `like`, in float32 or better: each sample's from its own seed."""
        drawn = normal(self.keys.generators(range(len(like)), purpose), like.shape[1:], like.device)
        return drawn.to(wide(like.dtype))
