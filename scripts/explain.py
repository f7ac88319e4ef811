"""``guidestack explain``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from ..guidance.notation import presets
from ..guidance.notation.objectives import kinds
from ..guidance.notation.registry import citation
from ..guidance.objective import name_of
from ..guidance.plan import Plan, Planned, check_emission, never_asking, plan
from ..guidance.rule import Stack, models_of, objectives_of, remarks
from ..guidance.words import counted
from ..pipelines.models.bundled import EMOJI
from ..pipelines.models.loading import chosen_sampler, scheduler_of
from ..pipelines.models.networks import network_identity
from ..samplers import grid, parameterization, scheduler_with_steps
from ..samplers.moving import check_room
from .as_json import echo_json, json_option
from .options import network_option, rules_option, sampler_option, steps_option


@dataclass(frozen=True)
class Explained:
    """What a stack asks for in a run.

    Attributes:
        stack: the stack.
        sampler: short name of the sampler.
        steps: that the sampler was asked for.
        planned: what is asked at each evaluation.
        notes: what a user should know of it, one line each.
    """

    stack: Stack
    sampler: str
    steps: int
    planned: Plan
    notes: Sequence[str]

    @property
    def summary(self) -> str:
        """The cost in one line."""
        planned, each = self.planned, counted(self.steps, "step")
        return f"{planned.cost} in {each} of {self.sampler}; unguided: {planned.unguided}"


def explained(
    stack: Stack, sampler: str, steps: int, model: Path | str | None, negatives: int = 1, positives: int = 0
) -> Explained:
    """What a stack asks for in a run of a model, of which only the scheduler's configuration is read.

    Args:
        stack: the stack.
        sampler: short name of the sampler.
        steps: of the sampler.
        model: folder or hub id; None for the bundled model.
        negatives: how many negative prompts a sample has.
        positives: how many it has beside its prompt.

    Raises:
        GuidestackError: the stack or the sampler is not for this run.
    """
    scheduler = scheduler_with_steps(sampler, scheduler_of(model or EMOJI), steps)
    check_emission(stack, parameterization(scheduler), steps)
    check_room(stack, scheduler)
    planned = plan(stack, grid(scheduler).points, negatives, positives)
    outside = [
        f"{stack.rules[place]} asks for nothing at any of these steps: its window lies outside of them"
        for place in never_asking(stack, planned)
    ]
    return Explained(stack, sampler, steps, planned, [*remarks(stack), *outside])


def evaluation_as_json(planned: Planned) -> dict[str, Any]:
    """What ``--json`` says of one evaluation; sigma/alpha is None where it is infinite."""
    when, queries = planned.when, [str(query) for query in planned.queries]
    ratio = when.level.k_sigma if math.isfinite(when.level.k_sigma) else None
    place = {"step": when.step, "evaluation": when.evaluation, "turn": planned.turn}
    return {**place, "sigma_over_alpha": ratio, "queries": queries}


@click.command()
@click.argument("stack")
@steps_option(25)
@sampler_option
@click.option("--model", type=click.Path(path_type=Path), help="Model folder.  [default: the bundled emoji model]")
@network_option
@rules_option
@json_option
def command(
    stack: str, steps: int, sampler: str | None, model: Path | None, networks: dict[str, str], as_json: bool
) -> None:
    """Print what STACK asks for at each step, the evaluations of a sample, and the papers.

    Rules that evaluate before the sampler does, such as langevin(2), take turns: "3 t1" is the first before step 3.

    STACK is text such as "during(cfg(4), sigma=(0.2, 5)) | rescale(0.7)", or @ with a preset's name or file, such as
    @interval-edm2. Nothing is run. The noise levels are those of the sampler for the model, of which only the
    scheduler's configuration is read. A stack whose rules do not go together is refused, naming them; `guidestack rules
    --compositions` has the table.
    """
    read = presets.read(stack)
    sampler = chosen_sampler(sampler, model)
    said = explained(read, sampler, steps, model)
    planned, notes = said.planned, list(said.notes)
    for name in sorted(models_of(read)):
        identity = " ".join(network_identity(networks[name]).values()) if name in networks else "none was given"
        notes.append(f"it asks the network {name!r} beside the model's own, --network {name}=FOLDER: {identity}")
    for text in objectives_of(read):
        name = name_of(text)
        takes = f", which takes a picture, --objective {name}=FILE" if name in kinds() and kinds()[name].takes else ""
        notes.append(f"it steers by the objective {text!r}{takes}")
    if read.per_image > 1:
        notes.append(f"generate and sweeps draw each image from {read.per_image} samples, at as many times this cost")
    if read.differentiates:
        notes.append("where a query says +grad, each of its evaluations has a backward pass, about twice its time")
    papers = citation(read)
    if as_json:
        echo_json(
            {
                "stack": str(read),
                "sampler": sampler,
                "steps": steps,
                "evaluations": planned.evaluations,
                "at_most": planned.at_most,
                "unguided": planned.unguided,
                "plan": [evaluation_as_json(one) for one in planned],
                "notes": notes,
                "citation": papers,
            }
        )
        return
    click.echo(f"{read}\n")
    click.echo(planned.HEAD)
    for one in planned:
        click.echo(str(one))
    click.echo(f"\n{said.summary}")
    if len(read.rules) > 1 or len(list(read.parts())) > 2:
        click.echo("composition: these rules go together")
    for note in notes:
        click.echo(f"note: {note}")
    if papers:
        click.echo(f"\n{papers}")
