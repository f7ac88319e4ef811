"""Everything about a sweep that can be refused or counted before the first network call."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...guidance.errors import GuidestackError, InputError
from ...guidance.plan import SHAPE, When, plan
from ...guidance.rule import Run
from ...guidance.stack import remarks
from ...guidance.words import counted, counted_are
from ...pipelines import guide
from ...pipelines.families.lookup import family_of
from ...pipelines.models.recipe import check_several, split
from ...pipelines.prompts import uses_negative
from ...pipelines.session import model_identity
from ...samplers import grid, scheduled, scheduler_identity
from ...samplers.renoise import Renoising
from ..spec.cells import Cell
from ..spec.prompts import Prompt
from ..values import shown
from .maker import Maker


@dataclass(frozen=True)
class Cost:
    """What a sample of a cell costs.

    Args:
        evaluations: by the number of its negatives and of its further positives.
        bound: whether that is an upper bound, as the stack decides while it runs.
    """

    evaluations: Mapping[tuple[int, int], int]
    bound: bool


def kinds(prompts: Sequence[Prompt], cell: Cell) -> Counter[tuple[int, int]]:
    """How many prompts have how many negatives and further positives, as the cell's stack counts them."""
    if not cell.several:
        return Counter({(1, 0): len(prompts)})
    return Counter((len(split(one.negative)), len(split(one.extra))) for one in prompts)


def check(maker: Maker, cells: Sequence[Cell], prompts: Sequence[Prompt]) -> dict[Cell, Cost]:
    """Check that the model can run every cell; returns what a sample of each costs.

    Raises:
        GuidestackError: it cannot; the message names the cell.
    """
    _check_prompts(maker, prompts)
    costs: dict[Cell, Cost] = {}
    for cell in cells:
        try:
            _check_size(maker, cell)
            costs[cell] = _checked(maker, cell, prompts)
        except GuidestackError as error:
            raise type(error)(f"the cell {cell}: {error}") from None
    return costs


def notes(maker: Maker, cells: Sequence[Cell], prompts: Sequence[Prompt]) -> list[str]:
    """What a user should know of a sweep that runs, one line each."""
    found = [remark for cell in cells for remark in remarks(cell.parsed)]
    without = list(dict.fromkeys(cell.stack for cell in cells if not uses_negative(cell.parsed)))
    if without and any(one.negative for one in prompts):
        more = f", nor of {counted(len(without) - 1, 'other stack')}" if len(without) > 1 else ""
        found.append(f"negative prompts are given, and no rule of {without[0]} uses them{more}")
    if maker.takes_prompts and (tokenizer := getattr(maker.pipe, "tokenizer", None)) is not None:
        limit = tokenizer.model_max_length
        texts = list(dict.fromkeys(one.text for one in prompts if len(one.text) > limit))  # a token is a letter or more
        cut = [text for text in texts if len(tokenizer(text).input_ids) > limit]
        if cut:
            long = counted_are(len(cut), "prompt")
            found.append(f"{long} longer than {limit} tokens, such as {shown(cut[0])}; the rest is cut off")
    return list(dict.fromkeys(found))


def _check_prompts(maker: Maker, prompts: Sequence[Prompt]) -> None:
    name = type(maker.pipe).__name__
    family_of(maker.pipe)
    classes = {one.class_id is not None for one in prompts}
    if maker.takes_classes and classes != {True}:
        raise InputError(f"{name} takes classes; write prompts: {{classes: [0, 1, 2]}}")
    if not maker.takes_classes and True in classes:
        raise InputError(f"{name} takes {'prompts' if maker.takes_prompts else 'no prompts'}, and classes were given")
    if maker.takes_prompts and any(not one.text for one in prompts) and len(prompts) == 1:
        raise InputError(f"{name} needs prompts: a list, a file, or {{bundled: {{count: 8}}}}")
    if not maker.takes_prompts and not maker.takes_classes and any(one.text for one in prompts):
        raise InputError(f"{name} takes no prompts; leave prompts out")
    if maker.takes_classes:
        count = maker.pipe.transformer.config.num_embeds_ada_norm
        if wrong := [one.class_id for one in prompts if one.class_id is not None and one.class_id >= count]:
            raise InputError(f"{name} has the classes 0 to {count - 1}; got {wrong[0]}")
    if not maker.takes_prompts and any(one.negative or one.extra for one in prompts):
        raise InputError(f"{name} takes no negative prompts")


def _check_size(maker: Maker, cell: Cell) -> None:
    if cell.size is None:
        return
    if not maker.takes_size:
        raise InputError(f"{type(maker.pipe).__name__} makes one size only; leave size out")
    step = max(8, int(getattr(maker.pipe, "vae_scale_factor", 8)))
    if min(cell.size) < step or any(side % step for side in cell.size):
        raise InputError(f"sizes are multiples of {step} pixels; got {cell.size[0]}x{cell.size[1]}")


def _checked(maker: Maker, cell: Cell, prompts: Sequence[Prompt]) -> Cost:
    maker.use(cell.sampler)
    negatives, extras = [one.negative for one in prompts], [one.extra for one in prompts]
    check_several(cell.parsed, negatives, extras, ("negatives", "extras"))
    guide(maker.pipe, cell.parsed)
    scheduler = scheduled(cell.sampler, maker.own, cell.steps)
    schedule = grid(scheduler)
    if cell.parsed.renoises:
        Renoising(scheduler, schedule, guides_history=cell.parsed.guides_history)  # refuses what it cannot step with
    points = [When(point.step, point.evaluation, point.level, point.time) for point in schedule.points]
    if any(part.needs_identity for part in cell.parsed.parts()):
        for given in sorted({bool(negative) for negative in negatives}):
            known: dict[str, Any] = {
                "model": model_identity(maker.pipe, family_of(maker.pipe)),
                "negative": "given" if given else "empty",
                **scheduler_identity(scheduler, schedule),
            }
            cell.parsed.init(Run(SHAPE, steps=schedule.steps, identity=known))
    evaluations = {
        kind: sum(len(one.queries) for one in plan(cell.parsed, points, *kind)) for kind in kinds(prompts, cell)
    }
    return Cost(evaluations, any(part.data_dependent for part in cell.parsed.parts()))
