"""The weights of training-free guidance, searched on a model: images are made, and the objective looks at them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...guidance.errors import InputError
from ...guidance.notation.objectives import objective
from ...guidance.objective import Bound, name_of
from ...guidance.rule import Rule, Stack
from ...guidance.rules import TFG
from ...guidance.words import counted
from ...pipelines.models.files import check_writable
from .. import statistics as intervals
from ..csvs import written_csv
from ..run.progress import Progress
from ..run.runner import Options, generator_of
from ..spec.sweep import Sweep
from ..store.folder import RunFolder
from .goal import Goal, likeness, path_name
from .pool import Grown
from .preset import write
from .settings import Setup
from .weights import Weights, beam

TRAINING, HELD_OUT, PRESET, TABLE = "training", "held-out", "steered.yaml", "weights.csv"
LOG_F = "log f"


@dataclass(frozen=True)
class Steered:
    """A stack that steers by one objective, whose weights are to be found.

    Args:
        stack: the stack to be steered. A rule in it that steers by the objective and has these weights, such as `TFG`,
            is the one whose weights are searched; else a `TFG` is added behind.
        objective: the text of the objective.
        picture: the file that it takes; None for none.

    Raises:
        InputError: two rules of the stack steer by the objective.
        RuleError: the objective's text is wrong.
    """

    stack: Stack
    objective: str
    picture: Path | None = None

    def __post_init__(self) -> None:
        if len(self._own) > 1:
            raise InputError(
                f"{self.stack}: two rules steer by {self.objective!r}; leave one whose weights are searched"
            )
        TFG(self.objective)

    @property
    def _own(self) -> list[Rule]:
        return [rule for rule in self.stack.rules if rule.objectives == (self.objective,) and Weights.are_of(rule)]

    @property
    def unsteered(self) -> Stack:
        """The stack without the rule."""
        return Stack(*(rule for rule in self.stack.rules if rule not in self._own))

    def steered(self, weights: Weights) -> Stack:
        """The stack with the rule at these weights, where it stands, or behind all others."""
        own = self._own[0] if self._own else TFG(self.objective)
        if not self._own:
            return Stack(*self.stack.rules, weights.of(own))
        return Stack(*(weights.of(own) if rule is own else rule for rule in self.stack.rules))

    @property
    def pictures(self) -> dict[str, str]:
        """The file of the objective, as a sweep has it."""
        return {} if self.picture is None else {name_of(self.objective): str(self.picture.resolve())}


@dataclass(frozen=True)
class Found:
    """What a search of weights found.

    Args:
        stack: the stack that was chosen and written.
        told: in words, how it stands on the held-out prompts.
        path: of the preset.
    """

    stack: Stack
    told: str
    path: Path


Values = NDArray[np.float64]


@dataclass(kw_only=True)
class Looked(Grown):
    """Stacks whose images an objective looks at.

    Args:
        bound: the objective.
        unsteered: text of the stack that is not steered.
        goal: how like the unsteered images the others must stay; None for no bound.
    """

    bound: Bound
    unsteered: str
    goal: Goal | None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.values: dict[str, Values] = {}
        self.alike: dict[str, Values] = {}

    def differs(self, before: Sweep) -> str:
        """What the sweep of the folder has that this one has not, such as a picture of another objective."""
        others = sorted(set(before.objectives) - set(self.settings.objectives))
        return f"it steers to the picture of {', '.join(map(repr, others))}" if others else super().differs(before)

    def measure(self, stacks: Sequence[Stack]) -> list[Values]:
        """Make what is missing, and ask the objective: its value of each image, stack by stack.

        Raises:
            GuidestackError, KeyboardInterrupt: as `made`.
        """
        texts = [self.unsteered, *map(str, stacks)]
        found = self.made(texts) if any(text not in self.values for text in texts) else {}
        for text, images in found.items():
            if text not in self.values:
                pictures = torch.from_numpy(images.images(range(len(images)))).permute(0, 3, 1, 2).float() / 255
                with torch.no_grad():
                    self.values[text] = self.bound(pictures).double().numpy()
                if self.goal is not None:
                    self.alike[text] = images.values(likeness(self.goal.metric), found[self.unsteered])
        return [self.values[text] for text in texts[1:]]


@dataclass
class Search:
    """A search of weights in a folder, which is gone on with where it was stopped.

    Results are in a folder within, called after the objective and the goal; images are shared.

    Args:
        steered: what is searched.
        setup: what images are made, with the picture of the objective.
        out: the folder. Nothing is written to it before `run`.
        goal: how like the unsteered images the steered ones must stay; None for no bound.
        options: how to run.
        progress: told what happens.
        say: shows a line to the user.

    Raises:
        InputError: an objective that sees no pictures, or a folder that is of another search.
        GuidestackError: the model cannot be loaded, or cannot run the stack.
    """

    steered: Steered
    setup: Setup
    out: Path
    goal: Goal | None = None
    options: Options = field(default_factory=Options)
    progress: Progress = field(default_factory=Progress)
    say: Callable[[str], None] = lambda line: None

    def __post_init__(self) -> None:
        check_writable(self.out)
        setup, text, fixed = self.setup, self.steered.objective, self.setup.fixed
        self.generator = generator_of(setup.model, fixed["dtype"], self.options, setup.networks, setup.objectives)
        bound = Bound(text, objective(text, self.generator.objectives))
        if bound.space != "pixels":
            raise InputError(
                f"weights are searched by what the objective says of finished pictures, and {text!r} sees {bound.space}"
            )
        self.generator.check(self.steered.steered(Weights()), fixed["sampler"], fixed["steps"])
        self.files = RunFolder(self.preset_file.parent)
        about: dict[str, Any] = {"bound": bound, "unsteered": str(self.steered.unsteered), "goal": self.goal}
        how = self.generator, self.options, self.progress
        self.pools = (
            Looked(str(self.out / TRAINING), setup, setup.training, *how, **about),
            Looked(str(self.out / HELD_OUT), setup, setup.held_out, *how, **about),
        )

    @property
    def preset_file(self) -> Path:
        """The file of the preset that the search writes."""
        bound = self.goal.parts if self.goal is not None else []
        return self.out / path_name([self.steered.objective, *bound]) / PRESET

    @property
    def samples(self) -> int:
        """How many images a whole search makes at most."""
        training, held_out = (len(pool.prompts.prompts) * self.setup.each for pool in self.pools)
        return (self.setup.budget + 1) * training + 3 * held_out

    def run(self) -> Found:
        """Search, look at the held-out prompts, and write the preset.

        Raises:
            InputError: no weights keep the images as alike as is wanted.
            GuidestackError: as the pipeline; what was finished stays.
            KeyboardInterrupt: Ctrl-C, likewise.
        """
        training, held_out = self.pools
        tried: list[Weights] = []

        def score(some: Sequence[Weights]) -> list[float]:
            stacks = [self.steered.steered(one) for one in some]
            values = training.measure(stacks)
            tried.extend(some)
            self._write(training, tried)
            good = (self._alike(training, stack) for stack in stacks)
            return [float(one.mean()) if fit else np.nan for one, fit in zip(values, good, strict=True)]

        best, value = beam(score, self.setup.budget)[0]
        if not np.isfinite(value):
            raise InputError(
                f"none of {len(tried)} weights keeps the images as like the unsteered ones as {self.goal}; ask for less"
            )
        chosen, first, without = self.steered.steered(best), self.steered.steered(Weights()), self.steered.unsteered
        held_out.measure([chosen, first])
        on = counted(len(self.setup.held_out.prompts), "held-out prompt")
        told = [f"{LOG_F} {_mean(held_out.values[str(chosen)])} on {on}"]
        for other, words in ((first, "where the search began"), (without, "unsteered")):
            if other != chosen:
                told.append(
                    f"{words} {_mean(held_out.values[str(other)])}, {self._difference(held_out, chosen, other)}"
                )
        if self.goal is not None:
            told.append(f"{self.goal.metric} to the unsteered {_mean(held_out.alike[str(chosen)])}")
        self._preset(chosen, told, len(tried))
        return Found(chosen, "; ".join(told), self.preset_file)

    def _alike(self, pool: Looked, stack: Stack) -> bool:
        """Whether the images of a stack stay as like the unsteered ones as is wanted."""
        if self.goal is None or self.goal.bound is None:
            return True
        return self.goal.sign * float(pool.alike[str(stack)].mean()) >= self.goal.sign * self.goal.bound

    def _difference(self, pool: Looked, chosen: Stack, other: Stack) -> str:
        away = pool.values[str(chosen)] - pool.values[str(other)]
        mean = f"{away.mean():+.4g}"
        if len(pool.prompts.prompts) < 2:
            return f"the found weights differ by {mean}, and one prompt gives no interval"
        low, high = intervals.bootstrap(away, self._places(away))
        told = "are better" if low > 0 else "are worse" if high < 0 else "are not told apart; they differ"
        return f"the found weights {told} by {mean} [{low:+.4g}, {high:+.4g}]"

    def _places(self, values: Values) -> NDArray[np.int64]:
        return np.arange(len(values)) // self.setup.each

    def _write(self, pool: Looked, tried: Sequence[Weights]) -> None:
        alike = [] if self.goal is None else [self.goal.metric]
        rows: list[list[Any]] = [["rho", "mu", "smoothing", LOG_F, "low", "high", *alike]]
        for one in tried:
            stack = str(self.steered.steered(one))
            values = pool.values[stack]
            ends = intervals.bootstrap(values, self._places(values))
            more = [float(pool.alike[stack].mean())] if alike else []
            rows.append([one.rho, one.mu, one.smoothing, float(values.mean()), *ends, *more])
        self.files.write_bytes(TABLE, written_csv(rows))

    def _preset(self, chosen: Stack, told: Sequence[str], tried: int) -> None:
        header = [f"Weights of tfg searched for {self.steered.objective}: the largest log f of the finished images."]
        numbers = {"verified": "; ".join(told)}
        numbers["search"] = f"{tried} weights on {counted(len(self.setup.training.prompts), 'other prompt')}" + (
            f", with {self.goal}" if self.goal is not None else ""
        )
        write(self.preset_file, str(chosen), header, numbers, (self.generator, self.setup.fixed), self.say)


def _mean(values: Values) -> str:
    return f"{values.mean():.4g}"


def unsteered_goal(goal: Goal | None) -> Goal | None:
    """The bound of likeness that a search of weights may have.

    Raises:
        InputError: it is none of the form METRIC>=NUMBER.
    """
    if goal is not None and (goal.bound is None or goal.evaluations is not None):
        raise InputError(
            "with --objective, --likeness is METRIC>=NUMBER or METRIC<=NUMBER, of the steered images to the unsteered "
            f"ones; got {goal}"
        )
    return goal
