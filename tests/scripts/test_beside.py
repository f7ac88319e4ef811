"""Claims that are no sweep: their rows, and how many prompts these need."""

from __future__ import annotations

import numpy as np
import pytest

from guidestack.evaluation import statistics
from guidestack.evaluation.verdicts import Finding
from guidestack.scripts.dev import beside
from guidestack.scripts.dev.beside import Beside, Row


def test_a_row_has_the_interval_of_the_paired_difference() -> None:
    random = np.random.default_rng(1)
    common = random.normal(5, 3, 40)
    values = {("number", "one"): common + random.normal(0.5, 0.1, 40), ("number", "two"): common}
    row = Row("number", "one", "higher", "two", 0.2)
    claim = Beside("Words.", "0000.00000", (row,), lambda asked, seed: values, 40, 1)
    (found,) = claim.found()
    assert found.expected == "number of one is higher than that of two"
    away = values["number", "one"] - common
    reach = statistics.student(39) * away.std(ddof=1) / np.sqrt(40)
    assert (found.low, found.high) == pytest.approx((away.mean() - reach, away.mean() + reach))
    assert Finding(**found.plain()).verdict == "holds"
    assert found.wanted() == int(np.ceil((2.8016 * away.std(ddof=1) / 0.2) ** 2))


@pytest.mark.parametrize("name", beside.CLAIMS)
def test_the_rows_of_a_claim_have_words_of_their_own_and_different_cells(name: str) -> None:
    claim = beside.CLAIMS[name]
    assert len({str(row) for row in claim.rows}) == len(claim.rows)
    for row in claim.rows:
        assert row.of != row.than
        assert row.matters > 0
