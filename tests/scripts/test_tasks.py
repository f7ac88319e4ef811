"""The bench of steering: what its tasks tell, that cells are kept, and what its tables say; no image is made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from guidestack.evaluation.tune.weights import Weights
from guidestack.guidance.errors import InputError
from guidestack.guidance.rule import Rule
from guidestack.guidance.rules import TFG
from guidestack.scripts.dev import tasks


@pytest.mark.parametrize("name", ["colour", "inpainting", "super-resolution", "deblurring"])
def test_what_is_told_fits_the_hidden_picture_best(name: str) -> None:
    task = tasks.TASKS[name]
    requests = task.requests(4, tasks.SEED)
    hidden = tasks.hidden_pictures(requests)
    assert hidden.shape == (4, 3, 64, 64)
    objective = tasks.Each(task.objectives(requests, hidden))
    values, others = objective(hidden), objective(hidden.roll(1, 0))
    assert objective.asked == 8
    if name != "colour":  # of which the whole picture would be of the background's color
        assert torch.allclose(values, torch.zeros(4), atol=1e-3)
        assert (others < values).all()
    best = task.score(requests, hidden.clamp(0.001, 0.999), hidden)
    assert (best > task.score(requests, hidden.roll(1, 0), hidden)).all()
    assert "" in {task.prompt(one) for one in requests} or name == "colour"


def test_every_class_is_a_concept_of_the_bundled_model() -> None:
    assert len(tasks.TASKS["class"].requests(8, 0)) == 8
    assert {one.slug for one in tasks.TASKS["class"].requests(50, 0)} <= set(tasks.CLASSES)


class Made:
    """In the place of `make`: scores by the weights, and a count."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, pipe: Any, task: Any, stack: Rule, rows: slice, steps: int) -> tasks.Cell:
        self.asked += 1
        rule = next((part for part in stack.parts() if isinstance(part, TFG)), None)
        score = 0.0 if rule is None else -abs(rule.rho - 1) - abs(rule.mu - 0.5)
        noise = np.random.default_rng(0).normal(0, 0.01, rows.stop - rows.start)
        return tasks.Cell((score + noise).tolist(), 10, 10, 20, 0.1)


def test_cells_are_kept_and_the_tables_say_who_is_better(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, file, about = Made(), tmp_path / "tasks.json", {"steps": 10}
    monkeypatch.setattr(tasks, "make", made)
    monkeypatch.setattr(tasks, "BUDGET", 30)
    bench = tasks.Bench(file, about)
    found = tasks.filled(bench, None, ["inpainting"])
    assert found == {"inpainting": Weights(1.0, 0.5, 0.001)}
    before = made.asked
    again = tasks.Bench(file, about)
    assert tasks.filled(again, None, ["inpainting"]) == found
    assert made.asked == before
    table = tasks.tables(again, found)
    assert "| inpainting | 1, 0.5, 0.001 | +1." in table
    assert table.count(", better") == 5
    assert tasks.beaten(again, ["inpainting"]) == {"inpainting": []}
    assert tasks.counts(again, ["inpainting"]).startswith("inpainting ")
    with pytest.raises(InputError, match="remove it, or take another"):
        tasks.Bench(file, {"steps": 11})
