"""The stack that is chosen, and the file that says what it was verified on."""

from __future__ import annotations

import contextlib
import itertools
import shlex
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from ...guidance.errors import GuidestackError, InputError
from ...guidance.notation.config import to_config
from ...guidance.notation.presets import TUNED, TunedFor, load_preset
from ...guidance.notation.text import parse
from ...pipelines.models.generator import Generator
from ..store.folder import RunFolder
from .frontier import Point, pareto
from .goal import Goal

ATTEMPTS = 3  # stacks that are looked at on held-out prompts before it is said that none is verified
WIDTH = 118


@dataclass(frozen=True)
class Verdict:
    """The verdict on a stack: whether it reaches the goal on held-out prompts.

    Args:
        point: its measurements.
        reached: whether the goal is reached with the whole interval on the right side.
        told: in words, with the numbers.
        fewer: the reference in as many steps as cost no more, on the same samples; None where there is no such number.
        ahead: of that: 1 where the stack is more alike, -1 where it is less, 0 where they are not told apart.
    """

    point: Point
    reached: bool
    told: str
    fewer: Point | None = None
    ahead: int = 1

    def advice(self, path: Path) -> str:
        """What to use, one line: the preset in the file `path`, or fewer steps of the reference."""
        preset = f"--guidance {shlex.quote(f'@{path}')}"
        if self.fewer is None or self.ahead > 0:
            return f"use it: {preset}"
        plain = f"--guidance {shlex.quote(self.fewer.stack)} --steps {self.fewer.steps}"
        costs = f"{self.fewer.cost:.4g} evaluations"
        if self.ahead < 0:
            return f"take fewer steps instead, which are more alike at {costs}: {plain} (the preset is {path})"
        return f"use it: {preset}; fewer steps, at {costs}, are not told apart from it: {plain}"


def verdict_on(point: Point, goal: Goal, than: Point | None) -> Verdict:
    """Judge whether the measurements of a stack reach a goal.

    Args:
        point: measured.
        goal: what is wanted.
        than: the point of the stack `goal.than`, on the same samples.
    """
    low, high = point.interval(goal.metric)
    value = f"{goal.metric} {point.mean(goal.metric):.4g} [{low:.4g}, {high:.4g}] at {point.cost:.4g} evaluations"
    good, words = True, [value]
    if goal.evaluations is not None:
        good = point.cost <= goal.evaluations
    if goal.bound is not None:
        good = good and goal.sign * (low if goal.sign > 0 else high) >= goal.sign * goal.bound
        words.append(f"wanted {'>=' if goal.sign > 0 else '<='} {goal.bound:g}")
    if than is not None:
        mean, low, high = point.difference(than, goal.metric)
        good = good and goal.sign * (low if goal.sign > 0 else high) >= 0
        words.append(
            f"less that of {than.stack} ({than.mean(goal.metric):.4g} at {than.cost:.4g} evaluations): {mean:+.4g} "
            f"[{low:+.4g}, {high:+.4g}]"
        )
    return Verdict(point, good, "; ".join(words))


def comparison(point: Point, other: Point, metrics: Sequence[str], sign: int) -> str:
    """Another point's numbers, and how this one differs from it in the first of the metrics.

    Args:
        point: the stack that was chosen.
        other: on the same samples.
        metrics: of likeness.
        sign: 1 where more of the first is more alike, -1 where less is.
    """
    each = ", ".join(f"{metric} {other.mean(metric):.4g}" for metric in metrics)
    mean, low, high = point.difference(other, metrics[0])
    verdict = {1: "more alike", -1: "less alike", 0: "not told apart"}[ahead(point, other, metrics[0], sign)]
    away = f"{metrics[0]} {mean:+.4g} [{low:+.4g}, {high:+.4g}]"
    return f"{other.cost:.4g} evaluations, {each}; the tuned is {verdict} ({away})"


def ahead(point: Point, other: Point, metric: str, sign: int) -> int:
    """1 where a point is more alike than another with the whole interval of their difference, -1 where less, else 0."""
    _, low, high = point.difference(other, metric)
    worst, best = sorted((sign * low, sign * high))
    return 1 if worst > 0 else -1 if best < 0 else 0


def candidates(points: Sequence[Point], goal: Goal, than: Point | None) -> Iterator[Point]:
    """Points of the frontier that reach a goal on the training prompts, cheapest first.

    Where only the cost is bounded these are the most alike first.

    Raises:
        InputError: none does; the message says the best there is.
    """
    front = pareto(points, goal.metric, goal.sign)
    good = [point for point in front if verdict_on(point, goal, than).reached]
    if not good:
        affordable = [point for point in front if goal.evaluations is None or point.cost <= goal.evaluations]
        best = (affordable or front[:1])[-1]
        raise InputError(
            f"none of {len(points)} stacks reaches {goal} on the training prompts; the best found is {best.stack}, "
            f"{verdict_on(best, goal, than).told}; raise --budget, or ask for less"
        )
    yield from good if goal.bound is not None or goal.than is not None else reversed(good)


def preset_bytes(chosen: str, header: Sequence[str], numbers: Mapping[str, str], tuned: TunedFor) -> bytes:
    """A preset: the stack as `load_preset` reads it and what it was tuned for, below comments.

    Args:
        chosen: the stack's text.
        header: sentences.
        numbers: lines with a name each.
        tuned: what the stack is for.
    """
    lines = [line for sentence in header for line in textwrap.wrap(sentence, WIDTH)]
    for name, number in numbers.items():
        lines += textwrap.wrap(f"{name}: {number}", WIDTH, initial_indent="  ", subsequent_indent="    ")
    comments = "".join(f"# {line}\n" for line in lines)
    about = {name: value for name, value in asdict(tuned).items() if value is not None}
    return (
        comments + yaml.safe_dump({**to_config(parse(chosen)), TUNED: about}, sort_keys=False, width=10**6)
    ).encode()


def write(
    path: Path,
    chosen: str,
    header: Sequence[str],
    numbers: Mapping[str, str],
    made_for: tuple[Generator, Mapping[str, Any]],
    say: Callable[[str], None],
) -> None:
    """Write a preset. One with another stack, as an earlier search has left it, is kept under another name.

    Args:
        path: of the preset.
        chosen: the text of its stack.
        header: sentences; behind the first comes what the preset is for.
        numbers: lines with a name each.
        made_for: the model, and what was fixed: sampler and steps.
        say: told where the one before is kept.
    """
    (generator, fixed), files = made_for, RunFolder(path.parent)
    model = " ".join(generator.identity.values())
    sentences = [header[0], f"For the model {model}, sampler {fixed['sampler']}, {fixed['steps']} steps.", *header[1:]]
    identity = generator.identity
    tuned = TunedFor(identity["name"], fixed["sampler"], fixed["steps"], identity.get("fingerprint"))
    _keep(files, path, chosen, say)
    files.write_bytes(path.name, preset_bytes(chosen, sentences, numbers, tuned))


def _keep(files: RunFolder, path: Path, chosen: str, say: Callable[[str], None]) -> None:
    try:
        before = files.location.read(path.name)
    except FileNotFoundError:
        return
    with contextlib.suppress(GuidestackError):
        if str(load_preset(path)) == chosen:
            return
    names = (f"{path.stem}-{number}{path.suffix}" for number in itertools.count(1))
    name = next(one for one in names if not files.location.exists(one))
    files.write_bytes(name, before)
    say(f"the preset that was there holds another stack; it is kept as {path.with_name(name)}")
