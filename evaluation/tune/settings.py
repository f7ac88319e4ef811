"""What to tune, for what, and on which prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ...guidance.errors import InputError
from ...guidance.rule import Stack
from ...guidance.words import counted_are
from ..spec.prompts import Prompt
from ..spec.sweep import Seeds, Sweep
from .goal import Goal
from .search import check_budget

SECOND = "ssim"


@dataclass(frozen=True)
class Prompts:
    """The training or the held-out prompts of a tuning.

    Args:
        prompts: in order.
        start: seed of the first.
        drawn: count and seed, of prompts for the bundled model that were drawn by these.
    """

    prompts: tuple[Prompt, ...]
    start: int
    drawn: tuple[int, int] | None = None


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What a search makes images of, on which prompts.

    Args:
        model: folder or hub id; None for the bundled model.
        training: prompts that the search looks at.
        held_out: others, which say what came of it.
        fixed: sampler, steps, size, dtype, batch.
        budget: how many stacks to try.
        each: seeds of a prompt.
        networks: further networks by name, as in a sweep.
        objectives: pictures of objectives by name, likewise.

    Raises:
        InputError: a budget of 0.
    """

    model: str | None = None
    training: Prompts
    held_out: Prompts
    fixed: Mapping[str, Any]
    budget: int = 64
    each: int = 1
    networks: Mapping[str, str] = field(default_factory=dict)
    objectives: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_budget(self.budget)

    def sweep(self, prompts: Prompts, stacks: Sequence[str]) -> Sweep:
        """The sweep of some stacks on prompts."""
        return Sweep(
            model=self.model,
            prompts=prompts.prompts,
            drawn=prompts.drawn,
            seeds=Seeds(each=self.each, start=prompts.start),
            stacks={stack: stack for stack in stacks},
            fixed=self.fixed,
            networks=self.networks,
            objectives=self.objectives,
        )


@dataclass(frozen=True, kw_only=True)
class Settings(Setup):
    """What a tuning searches, for which goal.

    Args:
        reference: the stack whose images are wanted for less.
        goal: what is wanted.
        seed: of the proposals.
        coefficients: of LinearAG around the reference, to be tried as well; None for none.

    Raises:
        InputError: a budget of 0, prompts that are in both sets, or a goal that is the reference itself.
    """

    reference: Stack
    goal: Goal
    seed: int = 0
    coefficients: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.goal.than == str(self.reference):
            raise InputError(
                f"--likeness {self.goal.than!r} is the reference itself, than which only equal images are no worse; "
                "give a cheaper stack, or a bound such as 'ssim>=0.97'"
            )
        both = {one.text for one in self.training.prompts} & {one.text for one in self.held_out.prompts}
        if both:
            raise InputError(
                f"{counted_are(len(both), 'prompt')} in the training and in the held-out set, such as {min(both)!r}: "
                "what is verified must be new; take them out of one of the two"
            )
        for name, one in (("training", self.training), ("held-out", self.held_out)):
            if len(one.prompts) < 2:
                raise InputError(f"an interval needs two {name} prompts at least; got {len(one.prompts)}")

    @property
    def metrics(self) -> tuple[str, ...]:
        """The likeness that is searched by, and a second one to look at."""
        return tuple(dict.fromkeys((self.goal.metric, SECOND)))

    def sweep(self, prompts: Prompts, stacks: Sequence[str]) -> Sweep:
        """The sweep of some stacks on prompts; the reference is its baseline if it is one of the stacks."""
        found, reference = super().sweep(prompts, stacks), str(self.reference)
        return replace(found, metrics=self.metrics, baseline=reference) if reference in stacks else found
