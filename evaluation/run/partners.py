"""Partner cells: one template of a sweep, made at the evaluations that the cells of the others have."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from ...guidance.errors import InputError
from ...pipelines.models.generator import Generator
from ..analysis.matched import EQUAL
from ..spec.cells import Cell
from ..spec.sweep import MOST_STEPS, STACK, Partners, Sweep
from .check import Cost, check


def partnered(generator: Generator, sweep: Sweep, costs: Mapping[Cell, Cost]) -> tuple[Sweep, list[str]]:
    """Count the steps at which the partner template costs what the cells of the other templates cost.

    Args:
        generator: the model.
        sweep: with `partners`, whose steps are not known.
        costs: of its cells.

    Returns:
        The sweep with these steps, and a line for each cell that has no partner.

    Raises:
        InputError: what the partner template costs is not known before it runs, or differs between its cells.
    """
    assert sweep.partners is not None
    own: dict[tuple[str, int], Cell] = {}
    for cell, cost in costs.items():
        if dict(cell.axes)[STACK] == sweep.partners.stack:
            first = own.setdefault((cell.sampler, cell.steps), cell)
            if cost.bound or cost.mean != costs[first].mean:
                text = f"{'at most ' * cost.bound}{cost.mean:g}"
                raise InputError(f"partners are cells of equal evaluations, known before they run; {cell} has {text}")
    by_sampler = {sampler: cell for (sampler, _), cell in own.items()}
    found: set[int] = set()
    notes = []
    for cell, cost in costs.items():
        if dict(cell.axes)[STACK] == sweep.partners.stack:
            continue
        if cost.bound:
            notes.append(f"{cell} has no partner: how many evaluations it takes is known when it has run")
            continue
        partner = by_sampler[cell.sampler]
        near = round(partner.steps * cost.mean / costs[partner].mean)
        steps = [one for one in range(near - 2, near + 3) if 1 <= one <= MOST_STEPS]
        beside = [dataclasses.replace(partner, steps=one) for one in steps]
        away = {one.steps: abs(each.mean - cost.mean) for one, each in check(generator, beside, sweep.prompts).items()}
        best = min(away, key=away.__getitem__, default=0)
        if not away or away[best] > EQUAL * cost.mean:
            notes.append(
                f"{cell} has no partner: no number of steps of {partner.stack} has its {cost.mean:g} evaluations"
            )
        else:
            found.add(best)
    return dataclasses.replace(sweep, partners=Partners(stack=sweep.partners.stack, steps=sorted(found))), notes
