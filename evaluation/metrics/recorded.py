"""What the records say of each sample: its cost, and how hard it was guided."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .base import RecordMetric
from .registry import register


@register("evaluations")
@dataclass(frozen=True)
class Evaluations(RecordMetric):
    """Mean network evaluations of a sample."""

    better: ClassVar[str] = "down"
    fewest: ClassVar[int] = 1
    column: ClassVar[str] = "evaluations"


@register("seconds")
@dataclass(frozen=True)
class Seconds(RecordMetric):
    """Wall time of a batch over the samples in it, in seconds, mean: of this machine, and of what else ran on it."""

    better: ClassVar[str] = "down"
    fewest: ClassVar[int] = 1
    column: ClassVar[str] = "seconds"


@register("effective_scale")
@dataclass(frozen=True)
class EffectiveScale(RecordMetric):
    """How hard it was guided: 1 + <guided - conditional, d> / <d, d>, d = conditional - unconditional; w for CFG.

    The mean over steps and samples.
    """

    column: ClassVar[str] = "effective_scale"


@register("across")
@dataclass(frozen=True)
class Across(RecordMetric):
    """The norm of what of guided - conditional is across conditional - unconditional, over the norm of that; mean."""

    column: ClassVar[str] = "across"


@register("ga_scale")
@dataclass(frozen=True)
class GAScale(RecordMetric):
    """GA-Eval's scale: the norm of guided - unconditional, over that of conditional - unconditional; w for CFG; mean.

    The root of the sum of the squares of effective scale and across, at each step; arXiv:2602.22570.
    """

    column: ClassVar[str] = "ga_scale"
