"""A fit of LinearAG on the oracle, in a folder of its own, for tests that run there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import guidestack as gs
from guidestack.guidance.rules.linear_ag import fit as linear
from guidestack.guidance.rules.linear_ag.rule import Recorded, letters
from guidestack.guidance.testing.checks import IDENTITY, LEVELS, oracle_run


def fitted(rule: gs.Rule) -> linear.Fit:
    """A fit on the oracle's example batch."""
    (state,) = oracle_run(Recorded(rule)).run.state
    return linear.Fit.empty(str(rule), len(LEVELS), IDENTITY).with_runs(state.c, state.u)


@pytest.fixture
def oracle_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """``oracle_fit(rule, name)`` writes a fit into the folder in which the test then runs."""
    monkeypatch.chdir(tmp_path)

    def write(rule: gs.Rule, name: str = "oracle.safetensors") -> linear.Fit:
        fit = fitted(rule)
        linear.write(fit, Path(name), [letter == "g" for letter in letters("paper", fit.steps)])
        return fit

    return write
