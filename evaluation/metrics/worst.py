"""How bad the worst seed of a prompt is."""

from __future__ import annotations

from dataclasses import dataclass

from ...guidance.errors import InputError, shown
from .base import PromptMetric, SampleMetric, Values
from .registry import parse_metric, register


@register("worst")
@dataclass(frozen=True)
class Worst(PromptMetric):
    """A metric of the worst image of each prompt, of its seeds, then the mean over prompts; the more seeds the worse.

    Does guidance make the worst case better, or only the mean? As MiniMax-Remover measures it, of K noises. Of a share,
    such as ``concept``, it is how often all K are right.

    Args:
        of: a metric of single images, of which one direction is better, such as ``"concept"``.
    """

    of: str = "concept"

    def __post_init__(self) -> None:
        inner = parse_metric(self.of)
        if not isinstance(inner, SampleMetric) or inner.better == "none":
            raise InputError(
                f"worst is of a metric of single images, of which one direction is better, such as concept; got "
                f"{shown(self.of)}"
            )
        for name in ("better", "range"):  # of the class, as of other metrics; here they are the inner metric's
            object.__setattr__(self, name, getattr(inner, name))

    @property
    def inner(self) -> SampleMetric:
        """The metric of single images."""
        inner = parse_metric(self.of)
        assert isinstance(inner, SampleMetric)  # as it was checked
        return inner

    def named(self, samples: int, prompts: int = 1) -> str:
        """The whole name, with the inner metric's and the number of seeds of a prompt, on average."""
        return f"{self.name}[{self.inner.full_name}, seeds={samples / prompts:g}]"

    def reduce(self, values: Values) -> float:
        """The worst of them."""
        return float(values.min() if self.better == "up" else values.max())
