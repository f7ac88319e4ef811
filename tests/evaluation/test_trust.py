"""What `evaluate` says below a table that should not be believed as it stands."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from guidestack.evaluation.analysis.trust import cautions
from guidestack.evaluation.metrics import parse_metric
from guidestack.evaluation.metrics.colour import Saturation


class Liked(Saturation):
    name, preference, better = "liked", True, "up"


class Few:
    """A cell of so many samples of so many evaluations each."""

    def __init__(self, samples: int, evaluations: float) -> None:
        self.samples, self.evaluations = samples, evaluations

    def __len__(self) -> int:
        return self.samples

    def numbers(self, column: str) -> Any:
        assert column == "evaluations"
        return np.full(self.samples, self.evaluations)


def said(metrics: list[Any], *cells: Few) -> str:
    read = [parse_metric(one) if isinstance(one, str) else one for one in metrics]
    return "\n".join(cautions(SimpleNamespace(by_name=dict(enumerate(cells))), read))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("metrics", "cells", "words"),
    [
        ([Liked()], [Few(9, 20)], "put saturation, contrast, effective_scale into metrics"),
        ([Liked(), "saturation", "effective_scale"], [Few(9, 20)], "put contrast into metrics"),
        (["frechet"], [Few(2000, 20), Few(100, 20)], "frechet of 100 images is biased upwards"),
        (["concept"], [Few(9, 20), Few(9, 40)], "cells cost 20 to 40 evaluations an image"),
        (["concept", "style", "frechet", "kid"], [Few(9, 20)] * 4, "24 pairs of cells and metrics"),
    ],
)
def test_a_rule_that_is_not_kept_is_a_line(metrics: list[Any], cells: list[Few], words: str) -> None:
    assert words in said(metrics, *cells)
    assert said(metrics, *cells).count("\n") == 0


@pytest.mark.parametrize(
    ("metrics", "cells"),
    [
        ([Liked(), "saturation", "contrast", "effective_scale"], [Few(9, 20), Few(9, 20.2)]),
        (["frechet", "kid"], [Few(9, 20)]),
        (["frechet"], [Few(2000, 20)]),
        (["saturation", "evaluations"], [Few(9, 20), Few(9, 40)]),  # of which neither is better for itself
        (["concept"], []),
    ],
)
def test_where_they_are_kept_nothing_is_said(metrics: list[Any], cells: list[Few]) -> None:
    assert said(metrics, *cells) == ""
