"""Coefficients of LinearAG for a world, from runs of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ...guidance.notation.presets import read
from ...guidance.observe import Seen
from ...guidance.query import POSITIVE
from ...guidance.rules.linear_ag import fit as linear
from ...guidance.rules.linear_ag.rule import GUIDED, PAPER, Recorded, letters
from .draws import draw
from .worlds import World

RUNS, FIRST = 400, 1 << 41  # seeds that no cell has


def fitted(world: World, cell: Mapping[str, Any], path: Path) -> None:
    """Fit the coefficients on runs of a cell, and write them.

    Args:
        world: where.
        cell: the arguments of `draw`; its stack is the one that LinearAG is to wrap.
        path: the file.
    """
    c: list[Tensor] = []
    u: list[Tensor] = []
    identity: dict[str, str] = {}

    def seen(one: Seen) -> dict[str, Tensor]:
        contrast = one.stack.contrast
        assert contrast is not None  # a stack that LinearAG can wrap
        c.append(one.predictions[POSITIVE].noise)
        u.append(one.predictions[contrast].noise)
        known = one.step.run.identity or {}
        identity.update({name: value for name, value in known.items() if value is not None})
        return {}

    recorded = Recorded(read(cell["stack"]))
    draw(world, **{**cell, "stack": recorded, "count": RUNS, "batch": RUNS, "seed": FIRST}, observe=seen)
    fit = linear.Fit.empty(str(recorded), len(c), identity).with_runs(c, u)
    fit = dataclasses.replace(fit, made={"runs": str(RUNS)})
    linear.write(fit, path, [letter == GUIDED for letter in letters(PAPER, len(c))])
