"""Everything about a sweep that can be refused or counted before the first network call."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...guidance.errors import GuidestackError, InputError, shown
from ...guidance.plan import plan
from ...guidance.rule import remarks
from ...guidance.words import counted, counted_are
from ...pipelines.families.lookup import family_of
from ...pipelines.models.generator import Generator
from ...pipelines.models.recipe import check_several, split
from ...pipelines.prompts import uses_negative
from ..spec.cells import Cell
from ..spec.prompts import Prompt
from ..spec.sweep import MOST_STEPS, STACK, Partners, Sweep
from ..statistics import EQUAL


@dataclass(frozen=True)
class Cost:
    """The network evaluations of a sample of a cell.

    Args:
        evaluations: by the number of its negatives and of its further positives.
        mean: over the prompts of the sweep.
        bound: whether that is an upper bound, as the stack decides while it runs.
    """

    evaluations: Mapping[tuple[int, int], int]
    mean: float
    bound: bool


def kinds(prompts: Sequence[Prompt], cell: Cell) -> Counter[tuple[int, int]]:
    """How many prompts have how many negatives and further positives, as the cell's stack counts them."""
    if not cell.takes_several:
        return Counter({(1, 0): len(prompts)})
    return Counter((len(split(one.negative)), len(split(one.extra))) for one in prompts)


def check(generator: Generator, cells: Sequence[Cell], prompts: Sequence[Prompt]) -> dict[Cell, Cost]:
    """Check that the model can run every cell; returns what a sample of each costs.

    Raises:
        GuidestackError: it cannot; the message names the cell.
    """
    _check_prompts(generator, prompts)
    costs: dict[Cell, Cost] = {}
    for cell in cells:
        try:
            costs[cell] = _checked(generator, cell, prompts)
        except GuidestackError as error:
            raise type(error)(f"the cell {cell}: {error}") from error
    return costs


def notes(generator: Generator, cells: Sequence[Cell], prompts: Sequence[Prompt]) -> list[str]:
    """What a user should know of a sweep that runs, one line each."""
    found = [remark for cell in cells for remark in remarks(cell.parsed)]
    without = list(dict.fromkeys(cell.stack for cell in cells if not uses_negative(cell.parsed)))
    if without and any(one.negative for one in prompts):
        more = f", nor of {counted(len(without) - 1, 'other stack')}" if len(without) > 1 else ""
        found.append(f"negative prompts are given, and no rule of {without[0]} uses them{more}")
    if cut := list(generator.cut_off([one.text for one in prompts])):
        long, limit = counted_are(len(cut), "prompt"), generator.pipe.tokenizer.model_max_length
        found.append(f"{long} longer than {limit} tokens, such as {shown(cut[0])}; the rest is cut off")
    return list(dict.fromkeys(found))


def _check_prompts(generator: Generator, prompts: Sequence[Prompt]) -> None:
    pipe, name = generator.pipe, type(generator.pipe).__name__
    family_of(pipe)
    takes_prompts, takes_classes = "prompt" in generator.takes, "class_labels" in generator.takes
    classes = {one.class_id is not None for one in prompts}
    if takes_classes and classes != {True}:
        raise InputError(f"{name} takes classes; write prompts: {{classes: [0, 1, 2]}}")
    if not takes_classes and True in classes:
        raise InputError(f"{name} takes {'prompts' if takes_prompts else 'no prompts'}, and classes were given")
    if takes_prompts and any(not one.text for one in prompts) and len(prompts) == 1:
        raise InputError(f"{name} needs a prompt that is not empty: a list, a file, or {{bundled: {{count: 8}}}}")
    if not takes_prompts and not takes_classes and any(one.text for one in prompts):
        raise InputError(f"{name} takes no prompts; leave prompts out")
    if takes_classes:
        count = pipe.transformer.config.num_embeds_ada_norm
        if wrong := [one.class_id for one in prompts if one.class_id is not None and one.class_id >= count]:
            raise InputError(f"{name} has the classes 0 to {count - 1}; got {wrong[0]}")
    if not takes_prompts and any(one.negative or one.extra for one in prompts):
        raise InputError(f"{name} takes no negative prompts")


def _checked(generator: Generator, cell: Cell, prompts: Sequence[Prompt]) -> Cost:
    generator.check_size(cell.size, [cell.parsed])
    negatives, extras = [one.negative for one in prompts], [one.extra for one in prompts]
    check_several(cell.parsed, negatives, extras, ("negatives", "extras"))
    schedule = generator.check(cell.parsed, cell.sampler, cell.steps, {bool(negative) for negative in negatives})
    of = kinds(prompts, cell)
    plans = {kind: plan(cell.parsed, schedule.points, *kind) for kind in of}
    evaluations = {kind: cell.parsed.per_image * one.evaluations for kind, one in plans.items()}
    mean = sum(evaluations[kind] * count for kind, count in of.items()) / of.total()
    return Cost(evaluations, mean, any(one.at_most for one in plans.values()))


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
