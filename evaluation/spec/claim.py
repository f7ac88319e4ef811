"""A paper's claim: in words, and as expectations on the cells of a sweep. `analysis.findings` says what a run shows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, ValidationInfo, model_validator

from ..metrics.registry import metric_located
from ..values import Checked, Text, check_keys, read_by, value_text
from ..verdicts import Be, expected

MAX_EXPECTATIONS = 100  # expectations of a claim


def _cell(given: dict[str, Any], info: ValidationInfo) -> dict[str, str]:
    check_keys(given, (info.context or {})["axes"])
    return {name: value_text(value) for name, value in given.items()}


CellValues = Annotated[dict[str, Any], AfterValidator(_cell)]
"""Values of axes that mean one cell, as texts; the context of the validation names the axes."""
MetricText = Annotated[Text, read_by(metric_located)]
"""A metric, with absolute paths."""


class Expectation(Checked):
    """How a metric in one cell is to stand to the metric in another.

    Args:
        metric: as `parse_metric` reads it.
        of: values of axes that mean one cell.
        be: how it is to stand.
        than: values of axes that mean the other cell.
        matters: the smallest difference that matters, above 0, in the metric's unit; see `verdicts`.
    """

    metric: MetricText
    of: Annotated[CellValues, Field(min_length=1)]
    be: Be
    than: Annotated[CellValues, Field(min_length=1)]
    matters: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.0

    @model_validator(mode="after")
    def _matters(self) -> Self:
        if not self.matters:
            raise ValueError("give matters, the smallest difference that matters, above 0, in the metric's unit")
        return self

    def __str__(self) -> str:
        return expected(self.metric, named(self.of), self.be, named(self.than))


class Claim(Checked):
    """A claim of a paper, and what is expected of a sweep if it is true.

    Args:
        words: the claim.
        paper: its number on arXiv.
        expect: what follows from it here.
        remark: why it may not show here, said after it was run; or "".
    """

    words: Text
    paper: Text
    expect: Annotated[list[Expectation], Field(min_length=1, max_length=MAX_EXPECTATIONS)]
    remark: str = ""


def named(cell: Mapping[str, str]) -> str:
    """The values of axes that mean a cell, as messages have them."""
    return ", ".join(f"{name} {value}" if name != "stack" else value for name, value in cell.items())
