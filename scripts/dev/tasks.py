"""``python -m guidestack.scripts.dev.tasks``: six tasks by six methods of steering, the tables of docs/objectives.md.

A task hides a picture of the bundled model's training set, and tells the run something of it, which an objective
measures. Methods are settings of `TFG`: five at the weight where the search begins, and the one that the search finds
on other pictures. Each cell is kept when it is made; the same command continues where it was stopped.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from ...evaluation import references, statistics, verdicts
from ...evaluation.emoji.pictures import on_background
from ...evaluation.emoji.vocabulary import BACKGROUNDS, Request, caption, drawn_requests, labels
from ...evaluation.tune.weights import Weights, beam
from ...guidance.errors import InputError
from ...guidance.files import write_whole
from ...guidance.objectives import Blur, Color, ImageNet, Known, Similar, SuperResolution
from ...guidance.rule import Rule, Stack
from ...guidance.rules import TFG, Recur
from ...guidance.words import counted
from ...pipelines import guide
from ...pipelines.models.bundled import load_emoji
from ...samplers import by_name
from ...samplers.noise import generators
from ..options import notices
from .claims import weights as fingerprint
from .figures.shared import fill

SEARCHED, STEPS, BUDGET = 4, 10, 12
"""Pictures that the search looks at, steps of DDIM, and weights that it tries."""
COUNT = 12
"""Pictures of a cell: what a pilot of the searched ones wants for differences that matter, see the page."""
SEED = 2026
MINE = "task"
CLASSES = {
    **{"pizza": 963, "hamburger": 933, "banana": 954, "strawberry": 949, "lemon": 951, "pineapple": 953},
    **{"mushroom": 947, "penguin": 145, "tiger": 292, "violin": 889, "snail": 113, "koala": 105},
}
"""Concepts that ImageNet has too, with their numbers there."""


@dataclass(frozen=True)
class Task:
    """One task.

    Args:
        words: what is known of the hidden picture, in words.
        prompt: what the prompt says of it.
        objectives: for hidden pictures ``(B, 3, H, W)`` the objective of each.
        score: of pictures that were made, given the hidden ones: how good each is, shape ``(B,)``.
        unit: of the score.
        matters: the smallest difference of scores that matters.
        concepts: the concepts to draw from; all if empty.
    """

    words: str
    prompt: Callable[[Request], str]
    objectives: Callable[[Sequence[Request], Tensor], Sequence[Any]]
    score: Callable[[Sequence[Request], Tensor, Tensor], Tensor]
    unit: str
    matters: float
    concepts: tuple[str, ...] = ()

    def requests(self, count: int, seed: int) -> list[Request]:
        """So many requests."""
        known = labels()
        return drawn_requests({slug: known[slug] for slug in self.concepts or known}, count, seed)


def psnr(made: Tensor, hidden: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of pictures ``(B, 3, H, W)`` in dB, shape ``(B,)``."""
    return -10 * (made.clamp(0, 1) - hidden).square().flatten(1).mean(1).log10()


def _half(hidden: Tensor) -> Tensor:
    """A picture ``(3, H, W)`` with its right half transparent, shape ``(4, H, W)``."""
    seen = torch.zeros_like(hidden[:1])
    seen[..., : hidden.shape[-1] // 2] = 1
    return torch.cat([hidden, seen])


def _measured(kind: Any) -> Callable[[Sequence[Request], Tensor], Sequence[Any]]:
    return lambda requests, hidden: [kind.given(one) for one in kind.measure(hidden)]


def _class(request: Request, side: int) -> ImageNet:
    return ImageNet(CLASSES[request.slug], side=side)


def _log_probability(requests: Sequence[Request], made: Tensor, hidden: Tensor) -> Tensor:
    """Of the class, for the mirrored picture at the network's own size, which the objective does not look at."""
    values = [_class(one, 224)(made[row : row + 1].flip(-1)) for row, one in enumerate(requests)]
    return torch.cat(values)


def _likeness(requests: Sequence[Request], made: Tensor, hidden: Tensor) -> Tensor:
    """The cosine of features, likewise."""
    net = Similar(side=224)
    return (net.features(made.flip(-1)) * net.features(hidden.flip(-1))).sum(1)


def _coarse(requests: Sequence[Request], made: Tensor, hidden: Tensor) -> Tensor:
    """Nearness at 16 x 16 pixels."""
    return psnr(*(functional.avg_pool2d(one.clamp(0, 1), 4) for one in (made, hidden)))


def _nearness(requests: Sequence[Request], made: Tensor, hidden: Tensor) -> Tensor:
    return psnr(made, hidden)


def _nothing(request: Request) -> str:
    return ""


TASKS: Mapping[str, Task] = {
    "class": Task(
        "its class of ImageNet; the prompt has style and background",
        lambda one: caption("", one.style, one.background),
        lambda requests, hidden: [_class(one, 128) for one in requests],
        _log_probability,
        "log p",
        1.0,
        tuple(sorted(CLASSES)),
    ),
    "colour": Task(
        "the colour of its background; the prompt has the rest",
        lambda one: caption(one.label, one.style),
        lambda requests, hidden: [
            Color("#{:02x}{:02x}{:02x}".format(*BACKGROUNDS[one.background])) for one in requests
        ],
        _coarse,
        "dB",
        1.0,
    ),
    "inpainting": Task(
        "its left half",
        _nothing,
        lambda requests, hidden: [Known().given(_half(one)) for one in hidden],
        _nearness,
        "dB",
        1.0,
    ),
    "super-resolution": Task("16 x 16 pixels of it", _nothing, _measured(SuperResolution(4)), _nearness, "dB", 1.0),
    "deblurring": Task("it, blurred over 3 pixels", _nothing, _measured(Blur(3)), _nearness, "dB", 1.0),
    "similarity": Task(
        "its features",
        _nothing,
        lambda requests, hidden: [Similar().given(one) for one in hidden],
        _likeness,
        "cosine",
        0.05,
    ),
}
FIRST = Weights()
METHODS: Mapping[str, Rule] = {
    "unsteered": Stack(),
    "dps": TFG.dps(MINE, FIRST.rho),
    "lgd": TFG.lgd(MINE, FIRST.rho, samples=2),
    "freedom": TFG.freedom(MINE, FIRST.rho) | Recur(2),
    "mpgd": TFG.mpgd(MINE, FIRST.mu),
    "ugd": TFG.ugd(MINE, FIRST.rho, FIRST.mu, inner=2) | Recur(2),
}
"""Beside ``tfg``, the one that is searched: ``tfg(..., inner=2)``, once a step."""
TFG_INNER = 2


class Each:
    """An objective for each sample of a batch.

    Args:
        parts: in the order of the samples.

    Attributes:
        asked: how often a sample's was evaluated, with its gradient.
    """

    def __init__(self, parts: Sequence[Any]) -> None:
        self.parts, self.asked = parts, 0

    def __call__(self, x0: Tensor) -> Tensor:
        """``log f`` of pictures ``(B, 3, H, W)``, shape ``(B,)``."""
        self.asked += len(x0)
        return torch.cat([part(x0[row : row + 1]) for row, part in enumerate(self.parts)])


@dataclass(frozen=True)
class Cell:
    """A method on a task.

    Args:
        scores: of each picture.
        evaluations: of the network, for an image.
        backward: backward passes of it.
        asked: evaluations of the objective with its gradient.
        seconds: of the processor, for an image.
    """

    scores: list[float]
    evaluations: float
    backward: float
    asked: float
    seconds: float

    @property
    def values(self) -> NDArray[np.float64]:
        """The score of each picture against the hidden one, shape ``(n,)``."""
        return np.array(self.scores)


def hidden_pictures(requests: Sequence[Request]) -> Tensor:
    """The pictures of the training set that requests mean, shape ``(B, 3, 64, 64)``."""
    drawings = references.drawings()
    found = []
    for one in requests:
        (place, *_rest) = np.flatnonzero((drawings.slugs == one.slug) & (drawings.styles == one.style))
        found.append(on_background(drawings.rgba[place], BACKGROUNDS[one.background]))
    return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2).contiguous()


def make(pipe: Any, task: Task, stack: Rule, rows: slice, steps: int) -> Cell:
    """Run a stack on some of a task's pictures.

    Args:
        pipe: the bundled model with DDIM.
        task: the task.
        stack: its objective is called `MINE`.
        rows: which pictures; picture i has the seed i.
        steps: of DDIM.
    """
    requests = task.requests(rows.stop, SEED)[rows]
    hidden = hidden_pictures(requests)
    objective = Each(task.objectives(requests, hidden))
    seeds = generators(range(rows.start, rows.stop))
    guided = guide(pipe, stack, objectives={MINE: objective})
    before = time.process_time()
    images = guided(
        [task.prompt(one) for one in requests], num_inference_steps=steps, generator=seeds, output_type="pt"
    )
    seconds, report = time.process_time() - before, guided.report
    assert report is not None  # a call leaves one
    backward = sum(query.grad for record in report.steps for query in record.queries)
    with torch.no_grad():
        scores = task.score(requests, images.images.float(), hidden)
    count = len(requests)
    return Cell(scores.tolist(), report.evaluations[0], backward, objective.asked / count, seconds / count)


class Bench:
    """All cells, in a file.

    Args:
        out: the file.
        about: what they are of; a file of something else is refused.

    Raises:
        InputError: the file is of something else.
    """

    def __init__(self, out: Path, about: Mapping[str, Any]) -> None:
        self.out, self.about = out, dict(about)
        self.cells: dict[str, Cell] = {}
        if out.exists():
            told = json.loads(out.read_text(encoding="utf-8"))
            if told["about"] != self.about:
                raise InputError(f"{out} is of {told['about']}, and this is {self.about}; remove it, or take another")
            self.cells = {name: Cell(**cell) for name, cell in told["cells"].items()}

    def of(self, name: str, made: Callable[[], Cell]) -> Cell:
        """A cell, made if it is not there."""
        if name not in self.cells:
            self.cells[name] = made()
            whole = {"about": self.about, "cells": {key: vars(cell) for key, cell in self.cells.items()}}
            write_whole(self.out, json.dumps(whole, indent=1) + "\n")
            click.echo(f"{name}: {np.mean(self.cells[name].scores):.4g}")
        return self.cells[name]


def searched(bench: Bench, pipe: Any, name: str) -> Weights:
    """The weights that the search finds for a task."""
    task, own = TASKS[name], TFG(MINE, inner=TFG_INNER)

    def score(some: Sequence[Weights]) -> list[float]:
        return [float(np.mean(bench.of(_probe(name, one), functools.partial(probe, one)).scores)) for one in some]

    def probe(one: Weights) -> Cell:
        return make(pipe, task, one.of(own), slice(0, SEARCHED), STEPS)

    return beam(score, BUDGET)[0][0]


def filled(bench: Bench, pipe: Any, names: Sequence[str]) -> dict[str, Weights]:
    """Make what is missing of some tasks; the weights that the search finds for each."""
    found = {}
    for name in names:
        found[name] = searched(bench, pipe, name)
        own = found[name].of(TFG(MINE, inner=TFG_INNER))
        for method, stack in [("tfg", own), *METHODS.items()]:
            cell = functools.partial(make, pipe, TASKS[name], stack, slice(SEARCHED, SEARCHED + COUNT), STEPS)
            bench.of(f"{name}/{method}", cell)
    return found


def _probe(name: str, one: Weights) -> str:
    return f"{name}/rho={one.rho:g}, mu={one.mu:g}, smoothing={one.smoothing:g}"


# --- the page -------------------------------------------------------------------------------------------------------


def interval(values: NDArray[np.float64]) -> str:
    """A mean with its interval."""
    low, high = statistics.bootstrap(values, np.arange(len(values)))
    return f"{values.mean():.2f} [{low:.2f}, {high:.2f}]"


def tables(bench: Bench, found: Mapping[str, Weights]) -> str:
    """The tables of the page."""
    names = [*METHODS, "tfg"]
    lines = ["| task, score | " + " | ".join(f"`{name}`" for name in names) + " |", "|---" * (len(names) + 1) + "|"]
    for task in found:
        cells = [interval(bench.cells[f"{task}/{name}"].values) for name in names]
        lines.append(f"| {task}, {TASKS[task].unit} | " + " | ".join(cells) + " |")
    presets = list(METHODS)[1:]
    lines += ["", "| `tfg` by search less ... | weights found | " + " | ".join(f"`{one}`" for one in presets) + " |"]
    lines.append("|---" * (len(presets) + 2) + "|")
    for task, one in found.items():
        cells = []
        for name in presets:
            away = bench.cells[f"{task}/tfg"].values - bench.cells[f"{task}/{name}"].values
            low, high = statistics.bootstrap(away, np.arange(len(away)))
            word = verdicts.said(verdicts.verdict(low, high, "higher", TASKS[task].matters), TASKS[task].matters)
            cells.append(f"{away.mean():+.2f} [{low:+.2f}, {high:+.2f}], {WORDS.get(word, word)}")
        lines.append(f"| {task} | {one.rho:g}, {one.mu:g}, {one.smoothing:g} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "| for an image | " + " | ".join(f"`{name}`" for name in names) + " |",
        "|---" * (len(names) + 1) + "|",
    ]
    some = next(iter(found))
    for field, words in (
        ("evaluations", "evaluations of the network"),
        ("backward", "backward passes of it"),
        ("asked", "gradients of the objective"),
    ):
        cells = [f"{getattr(bench.cells[f'{some}/{name}'], field):g}" for name in names]
        lines.append(f"| {words} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


WORDS = {verdicts.HOLDS: "better", verdicts.CONTRARY: "worse"}


def beaten(bench: Bench, tasks: Sequence[str]) -> dict[str, list[str]]:
    """Of each task the presets that the search does not certainly beat."""
    found: dict[str, list[str]] = {}
    for task in tasks:
        own = bench.cells[f"{task}/tfg"].values
        found[task] = [
            name
            for name in list(METHODS)[1:]
            if statistics.bootstrap(own - bench.cells[f"{task}/{name}"].values, np.arange(len(own)))[0] <= 0
        ]
    return found


def counts(bench: Bench, tasks: Sequence[str]) -> str:
    """How many pictures the differences want, by their deviations."""
    told = []
    for task in tasks:
        own = bench.cells[f"{task}/tfg"].values
        spread = max(float((own - bench.cells[f"{task}/{name}"].values).std(ddof=1)) for name in list(METHODS)[1:])
        wanted = verdicts.wanted(spread, "higher", TASKS[task].matters)
        told.append(f"{task} {spread:.2g} {TASKS[task].unit} ({wanted})")
    return "; ".join(told)


@click.command(help="Six tasks by six methods of steering with the bundled model: the tables of docs/objectives.md.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("docs/tasks.json"), show_default=True)
@click.option("--page", type=click.Path(path_type=Path), default=Path("docs/objectives.md"), show_default=True)
@click.option("--task", "tasks", type=click.Choice(list(TASKS)), multiple=True, help="Only these; the page stays.")
@click.option("--threads", type=click.IntRange(1, 1024), default=1, show_default=True)
def main(out: Path, page: Path, tasks: tuple[str, ...], threads: int) -> None:
    """Make what is missing, and write the page's tables."""
    torch.set_num_threads(threads)
    with notices():
        pipe = load_emoji()
        pipe.set_progress_bar_config(disable=True)
        pipe.unet.requires_grad_(False)
        pipe.vae.requires_grad_(False)
        pipe.scheduler = by_name("ddim", pipe.scheduler)
        about = {"weights": fingerprint(), "steps": STEPS, "searched": SEARCHED, "count": COUNT, "budget": BUDGET}
        bench = Bench(out, about)
        found = filled(bench, pipe, tasks or list(TASKS))
    written = tables(bench, found)
    click.echo(
        f"{written}\nnot certainly beaten: {beaten(bench, list(found))}\ndeviations: {counts(bench, list(found))}"
    )
    if not tasks:
        fill(page, "tasks", written)
        click.echo(f"{page}: {counted(len(found), 'task')}")


if __name__ == "__main__":
    main()
