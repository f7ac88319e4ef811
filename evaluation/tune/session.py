"""A whole tuning: search on training prompts, verification on held-out ones, and the files that say what came of it."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ...guidance.errors import InputError
from ...guidance.plan import SchedulePoint
from ...guidance.rule import Stack
from ...guidance.version import __version__
from ...pipelines import guide
from ...pipelines.models.files import check_writable
from ...samplers import grid
from ..run.check import check
from ..run.progress import Progress
from ..run.runner import Options, generator_of
from ..spec.cells import expand
from ..store.folder import RunFolder
from . import frontier, preset
from .frontier import Point, pareto
from .goal import likeness
from .pool import Pool
from .search import check_installed, search
from .settings import Prompts, Settings
from .space import Space, linear_stacks

TRAINING, HELD_OUT = "training", "held-out"
PRESET = "tuned.yaml"
SHARES = (3 / 4, 1 / 2, 1 / 3, 1 / 4)
"""Of the steps, with which the reference itself is measured: what a schedule has to beat."""


@dataclass
class Tuning:
    """A tuning in a folder, which is gone on with where it was stopped.

    Results are in a folder within, called after the goal; images are shared by all goals.

    Args:
        settings: what to tune.
        out: the folder, on this machine. Nothing is written to it before `run`.
        options: how to run.
        progress: told what happens.
        say: shows a line to the user.

    Raises:
        InputError: optuna is missing, the folder cannot be written to or is of another tuning, or no plan costs as
            little as is wanted.
        GuidestackError: the model cannot be loaded, or cannot run the reference.
    """

    settings: Settings
    out: Path
    options: Options = field(default_factory=Options)
    progress: Progress = field(default_factory=Progress)
    say: Callable[[str], None] = lambda line: None

    def __post_init__(self) -> None:
        settings = self.settings
        check_installed()
        check_writable(self.out)
        self.generator = generator_of(settings.model, settings.fixed["dtype"], self.options, settings.networks)
        self.files = RunFolder(self.out / settings.goal.name)
        self.training = self._pool(TRAINING, settings.training)
        self.held_out = self._pool(HELD_OUT, settings.held_out)
        self.space = Space.of(settings.reference, self._points(), self._runs)
        self._check_goal()
        self.extra = list(map(str, linear_stacks(settings.reference, settings.coefficients, settings.fixed["steps"])))
        for prompts in (settings.training, settings.held_out):
            self._check(prompts)

    def _pool(self, name: str, prompts: Prompts) -> Pool:
        return Pool(str(self.out / name), self.settings, prompts, self.generator, self.options, self.progress)

    def _runs(self, stack: Stack) -> None:
        guide(self.generator.pipe, stack, networks=self.generator.asked(stack))

    def _points(self) -> tuple[SchedulePoint, ...]:
        self.generator.use(self.settings.fixed["sampler"])
        self._runs(self.settings.reference)
        self.generator.pipe.scheduler.set_timesteps(self.settings.fixed["steps"])
        return grid(self.generator.pipe.scheduler).points

    def _check_goal(self) -> None:
        """Refuse what no plan costs so little as, before anything is made."""
        most, least = self.settings.goal.evaluations, self.space.least
        if most is not None and most < least:
            raise InputError(
                f"--evaluations {most:g} cannot be reached: the cheapest plan of {self.settings.reference} on this "
                f"model costs {least} in {self.space.steps} steps"
            )

    def _check(self, prompts: Prompts) -> None:
        """Refuse what the model cannot run before it runs anything."""
        than = [self.settings.goal.than] if self.settings.goal.than else []
        stacks = list(dict.fromkeys([self.training.reference, *than, *self.extra]))
        check(self.generator, expand(self.settings.sweep(prompts, stacks)), prompts.prompts)

    @property
    def preset_file(self) -> Path:
        """The file of the preset that the tuning writes."""
        return self.out / self.settings.goal.name / PRESET

    @property
    def samples(self) -> int:
        """About how many images a whole tuning makes."""
        yardsticks = len(self.fewer)
        return (self.settings.budget + 1 + yardsticks) * self.training.samples + 5 * self.held_out.samples

    @functools.cached_property
    def fewer(self) -> list[int]:
        """Numbers of steps, fewer than those asked for, with which the reference is measured."""
        steps = self.settings.fixed["steps"]
        return sorted({round(share * steps) for share in SHARES if 1 <= round(share * steps) < steps}, reverse=True)

    # --- the parts -------------------------------------------------------------------------------------------------

    def run(self) -> preset.Verdict:
        """Search, verify, and write everything.

        Returns:
            The verdict on the held-out prompts of the stack that was chosen and written.

        Raises:
            InputError: the goal is not reached; what was measured is written all the same.
            GuidestackError: as the pipeline; what was finished stays.
            KeyboardInterrupt: Ctrl-C, likewise.
        """
        settings, goal = self.settings, self.settings.goal
        (reference,) = self.training.measure([self.training.reference])
        fewer = [self._fewer(self.training, TRAINING, steps) for steps in self.fewer]
        than = self.training.measure([goal.than])[0] if goal.than else None
        if than is not None and goal.sign * than.mean(goal.metric) >= goal.sign * reference.mean(goal.metric):
            raise InputError(
                f"the images of {than.stack} equal those of the reference, than which none are more alike; give a "
                "cheaper stack, or a bound such as 'ssim>=0.97'"
            )
        tried: list[Point] = [reference]

        def measure(stacks: Sequence[str]) -> list[Point]:
            found = self.training.measure(stacks)
            tried.extend(point for point in found if point not in tried)
            self._write(tried, fewer, than)
            return found

        points = search(self.space, measure, goal.metric, goal.sign, settings.budget, settings.seed, self.extra)
        self._write(points, fewer, than)
        return self._verified(points, fewer, than)

    def _fewer(self, pool: Pool, name: str, steps: int) -> Point:
        """The reference with fewer steps, on the samples of a pool."""
        (point,) = pool.at(steps, str(self.out / f"{name}-{steps}-steps")).measure([pool.reference])
        return point

    def _verified(self, points: Sequence[Point], fewer: Sequence[Point], than: Point | None) -> preset.Verdict:
        goal, looked = self.settings.goal, []
        for candidate in self._some(preset.candidates(points[1:], goal, than)):  # the reference saves nothing
            stacks = [self.held_out.reference, *([goal.than] if goal.than else []), candidate.stack]
            measured = dict(zip(stacks, self.held_out.measure(stacks), strict=True))
            other = measured[goal.than] if goal.than else None
            verdict = preset.verdict_on(measured[candidate.stack], goal, other)
            looked.append(verdict)
            self.say(f"held-out: {candidate.stack}: {verdict.told}")
            if verdict.reached:
                yardstick = self._yardstick(verdict.point)
                if yardstick is not None:
                    ahead = preset.ahead(verdict.point, yardstick, goal.metric, goal.sign)
                    verdict = replace(verdict, fewer=yardstick, ahead=ahead)
                    than_fewer = preset.comparison(verdict.point, yardstick, self.settings.metrics, goal.sign)
                    self.say(f"{yardstick.stack} in {yardstick.steps} steps: {than_fewer}")
                self._write_preset(verdict, (len(points) - 1, len(looked)), yardstick, other)
                self._write(points, fewer, than, [one for one in (verdict.point, other, yardstick) if one])
                return verdict
        best = max(looked, key=lambda one: goal.sign * one.point.mean(goal.metric))
        raise InputError(
            f"none of the {len(looked)} best stacks reaches {goal} on the held-out prompts as well; the best is "
            f"{best.point.stack}, {best.told}; raise --budget, give more training prompts, or ask for less"
        )

    @staticmethod
    def _some(candidates: Iterator[Point]) -> Iterator[Point]:
        for _, candidate in zip(range(preset.ATTEMPTS), candidates):
            yield candidate

    def _yardstick(self, chosen: Point) -> Point | None:
        """The reference on the held-out prompts with as many steps as cost no more than the stack that was chosen."""
        each = self.space.cost(self.settings.reference) / self.space.steps
        steps = min(math.floor(chosen.cost / each), self.space.steps - 1)
        return self._fewer(self.held_out, HELD_OUT, steps) if steps >= 1 else None

    # --- what is written -------------------------------------------------------------------------------------------

    @property
    def told(self) -> dict[str, Any]:
        """The model, settings and goal that the numbers of frontier.json belong to."""
        settings = self.settings
        return {
            "model": dict(self.generator.identity),
            "reference": str(settings.reference),
            **{name: settings.fixed[name] for name in ("sampler", "steps", "dtype")},
            "evaluations": self.space.cost(settings.reference),
            "goal": str(settings.goal),
            "metric": settings.goal.metric,
            "names": {metric: likeness(metric).full_name for metric in settings.metrics},
            "versions": {"guidestack": __version__, **self.generator.versions},
        }

    def _write(
        self,
        tried: Sequence[Point],
        fewer: Sequence[Point],
        than: Point | None,
        verified: Sequence[Point] = (),
    ) -> None:
        """The frontier as JSON, CSV and a picture."""
        goal = self.settings.goal
        front = pareto(tried, goal.metric, goal.sign)
        groups: dict[str, Sequence[Point]] = {"frontier": front, "tried": tried, "fewer_steps": fewer}
        groups |= {"wanted": [than]} if than else {}
        groups |= {"held_out": verified} if verified else {}
        told = frontier.told(self.told, groups)
        self.files.write_bytes("frontier.json", frontier.as_json(told))
        self.files.write_bytes("frontier.csv", frontier.as_csv(groups))
        if verified:  # the picture is for the end, which is where it is looked at
            self.files.write_bytes("frontier.svg", frontier.figure(told))

    def _write_preset(
        self, verdict: preset.Verdict, counts: tuple[int, int], yardstick: Point | None, than: Point | None
    ) -> None:
        settings, point = self.settings, verdict.point
        seeds = f"seeds {settings.held_out.start} and on"
        held = f"{len(settings.held_out.prompts)} held-out prompts, {seeds}"
        whole = self.space.cost(settings.reference)
        header = [
            f"Tuned: {point.cost:.4g} network evaluations an image instead of the {whole} of {settings.reference}.",
            f"Wanted: {settings.goal}. Verified on {held}, with 95% intervals over prompts:",
        ]
        numbers = {}
        for metric in settings.metrics:
            low, high = point.interval(metric)
            numbers[likeness(metric).full_name] = f"{point.mean(metric):.4g} [{low:.4g}, {high:.4g}]"
        for other, words in ((than, "wanted"), (yardstick, "fewer steps of the reference")):
            if other is not None:
                name = f"{words}: {other.stack}, {other.steps} steps"
                numbers[name] = preset.comparison(point, other, settings.metrics, settings.goal.sign)
        numbers["search"] = (
            f"{counts[0]} stacks on {len(settings.training.prompts)} other prompts; the {_ordinal(counts[1])} that was "
            "looked at on the held-out ones"
        )
        versions = ", ".join(f"{name} {number}" for name, number in self.told["versions"].items())
        numbers["made"] = f"{datetime.now(UTC):%Y-%m-%d} by guidestack tune, {versions}"
        preset.write(self.preset_file, point.stack, header, numbers, (self.generator, settings.fixed), self.say)


def _ordinal(number: int) -> str:
    return {1: "first", 2: "second", 3: "third"}.get(number, f"{number}th")
