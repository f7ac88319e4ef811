"""What is made on the page: what was typed becomes recipes, and recipes become images, one after the other."""

from __future__ import annotations

import re
import sys
import tempfile
import threading
import traceback
import uuid
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import click
from torch import Tensor

from ...evaluation.effective_scale import gathered, strength
from ...guidance.errors import GuidestackError, GuidestackWarning, InputError, NonFiniteError, reason, shown
from ...guidance.observe import Seen
from ...guidance.report import Report
from ...guidance.rule import Stack, models_of
from ...pipelines.families.lookup import family_of
from ...pipelines.models.files import contents
from ...pipelines.models.generator import Asked, Generator
from ...pipelines.models.loading import chosen_sampler
from ...pipelines.models.recipe import Recipe, check_text, recipes, split
from ...pipelines.size import own_size
from ..explain import Explained, explained
from ..generate import command as generate
from ..options import read_size
from ..studio import Studio
from .files import Given

KEPT = 2**28  # bytes of finished pictures that are kept for the pages; the oldest go first
Typed = Mapping[str, str]
"""What stands in the settings that all stacks share, as text by name: `SETTINGS`."""
SETTINGS = ("prompt", "negative", "extra", "sampler", "steps", "seed", "size", "strength")


def _option(name: str) -> click.Parameter:
    return next(one for one in generate.params if one.name == name)


DEFAULTS = {"steps": str(_option("steps").default), "seed": str(_option("seed").default)}


def _number(name: str, text: str) -> Any:
    """A number as the command line reads it.

    Raises:
        InputError: it is none, or out of bounds; the message is the command line's own.
    """
    option = _option(name)
    try:
        return option.type.convert(text.strip(), option, None)
    except click.BadParameter as error:
        raise InputError(error.message) from error


def read(typed: Typed, model: str | None) -> tuple[dict[str, Any], dict[str, str]]:
    """What the settings say, and what is wrong with them: by the name of the setting, the command line's own line."""
    readers: dict[str, Callable[[str], Any]] = {
        "sampler": lambda text: chosen_sampler(text.strip() or None, model),
        "steps": lambda text: _number("steps", text),
        "seed": lambda text: _number("seed", text),
        "size": lambda text: read_size(text.strip() or None),
        "strength": lambda text: _number("strength", text) if text.strip() else None,
    }
    found: dict[str, Any] = {}
    wrong: dict[str, str] = {}
    for name in SETTINGS:
        text = typed.get(name, DEFAULTS.get(name, ""))
        try:
            check_text(text, f"the text of {name}")
            found[name] = readers[name](text) if name in readers else text.strip()
        except GuidestackError as error:
            wrong[name] = str(error)
    if "prompt" in found and not found["prompt"]:
        wrong["prompt"] = "no prompt given; try: cat face, noto style, blue background"
    return found, wrong


def check_files(stack: Stack) -> None:
    """Refuse a stack that reads a file: texts of a page may be anybody's.

    Raises:
        InputError: a rule names another file than those that come with guidestack.
    """
    for part in stack.parts():
        for name, file in part.files().items():
            if not file.bundled:
                raise InputError(
                    f"the page reads no file that a text names, and {shown(getattr(part, name))} is one; guidestack "
                    "generate does"
                )


def planned(
    stack: Stack, settings: Mapping[str, Any], model: str | None, networks: Mapping[str, Any], begins: bool = False
) -> Explained:
    """What a stack will cost under the settings, and what there is to say of it before it runs.

    Args:
        stack: the stack.
        settings: as in `read`.
        model: folder or hub id; None for the bundled model.
        networks: the further networks that there are, by name.
        begins: whether images begin from a picture.

    Raises:
        GuidestackError: it is not for this run.
    """
    check_files(stack)
    negatives = max(1, len(split(settings["negative"]))) if stack.takes_several else 1
    positives = len(split(settings["extra"])) if stack.takes_several else 0
    said = explained(stack, settings["sampler"], settings["steps"], model, negatives, positives)
    notes = list(said.notes)
    notes += [
        f"it asks the network {name!r} beside the model's own: guidestack play --network {name}=FOLDER"
        for name in sorted(models_of(stack) - networks.keys())
    ]
    if settings["extra"] and not stack.takes_several:
        notes.append("no rule of it uses the further positive prompts; perpneg(scale) does")
    if begins:
        share = "the last {:g}% of".format(100 * settings["strength"]) if settings["strength"] else "only the last of"
        notes.append(f"images begin from a picture: {share} these steps are made")
    return replace(said, notes=notes)


def recipe_of(stack: Stack, settings: Mapping[str, Any], dtype: str) -> tuple[Recipe, list[str]]:
    """The recipe of the image of a stack under the settings, and warnings.

    Raises:
        GuidestackError: prompt and stack do not go together.
    """
    check_files(stack)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", GuidestackWarning)
        (recipe,) = recipes(
            [settings["prompt"]],
            [str(stack)],
            [settings["negative"]],
            [settings["extra"] if stack.takes_several else ""],
            settings["seed"],
            sampler=settings["sampler"],
            steps=settings["steps"],
            size=settings["size"],
            dtype=dtype,
            strength=settings["strength"],
        )
    return recipe, [str(one.message) for one in caught if issubclass(one.category, GuidestackWarning)]


class _Stopped(Exception):
    """Raised between two evaluations of a job that nobody wants any more."""


@dataclass(eq=False)
class Cell:
    """One image of a job.

    Attributes:
        recipe: how it is made.
        given: the files that it is made from.
        state: ``"waiting"``, ``"making"``, ``"made"``, ``"refused"`` or ``"stopped"``.
        step: steps that are done.
        error: why it was refused, one line.
        cause: the file that it was refused for, by name: ``"lora0"``; "" where it is none.
        picture: the name under which `Maker.picture` has the file.
        width: of the picture, in pixels.
        report: what was evaluated.
        scales: the effective scale at each step.
        seconds: how long it took.
    """

    recipe: Recipe
    given: Given = field(default_factory=Given)
    state: str = "waiting"
    step: int = 0
    error: str = ""
    cause: str = ""
    picture: str = ""
    width: int = 0
    report: Report | None = None
    scales: list[float] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def over(self) -> bool:
        """Whether nothing will change any more."""
        return self.state in ("made", "refused", "stopped")


@dataclass(eq=False)
class Job:
    """Images to be made one after the other.

    Args:
        cells: of the images.
    """

    cells: Sequence[Cell]
    _stopped: threading.Event = field(default_factory=threading.Event)

    def stop(self) -> None:
        """Stop before the next evaluation of the network. What is finished stays."""
        self._stopped.set()
        for cell in self.cells:
            if not cell.over:
                cell.state = "stopped"

    @property
    def over(self) -> bool:
        """Whether nothing will change any more."""
        return all(cell.over for cell in self.cells)

    def watch(self, cell: Cell) -> Callable[[Seen], Mapping[str, Tensor]]:
        """The observer of the run of a cell."""

        def seen(evaluation: Seen) -> Mapping[str, Tensor]:
            if self._stopped.is_set():
                raise _Stopped
            cell.step = evaluation.step.index + 1
            return strength(evaluation)

        return seen


class Maker:
    """Makes the images of all pages with one model, in one thread.

    Args:
        generator: the model; it is loaded at once, in the thread.

    Attributes:
        loaded: done when the model is there.
        folder: for the files that are given to the pages; it is removed when the maker is closed.
    """

    def __init__(self, generator: Generator) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="play-")
        self.folder = Path(self._folder.name)
        self.generator, self.studio = generator, Studio(generator)
        self._pool = ThreadPoolExecutor(1, "guidestack-play")
        self._jobs: list[Job] = []
        self._pictures: OrderedDict[str, tuple[str, bytes]] = OrderedDict()
        self.loaded: Future[Any] = self._pool.submit(lambda: generator.pipe)

    def start(self, job: Job) -> Future[None]:
        """Make the images of a job, after those of jobs before it; done when the thread is done with it."""
        self._jobs = [*(one for one in self._jobs if not one.over), job]
        return self._pool.submit(self._run, job)

    def close(self) -> None:
        """Stop all jobs."""
        for job in self._jobs:
            job.stop()
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._folder.cleanup()

    @property
    def own_size(self) -> tuple[int, int] | None:
        """Height and width of what the model makes when nothing is said; None before it is loaded."""
        if not self.loaded.done() or self.loaded.exception():
            return None
        pipe = self.loaded.result()  # which is in another thread's hands by now; its sizes stay
        return own_size(pipe, family_of(pipe))

    def picture(self, name: str) -> tuple[str, bytes] | None:
        """File name and contents of a finished picture: a PNG that says how it was made."""
        return self._pictures.get(name)

    def _run(self, job: Job) -> None:
        for cell in job.cells:
            if not cell.over:
                self._make(job, cell)

    def _make(self, job: Job, cell: Cell) -> None:
        cell.state = "making"
        try:
            self._made(job, cell)
        except _Stopped:
            cell.state = "stopped"
        except GuidestackError as error:
            cell.state, cell.error = "refused", re.sub(rf"{re.escape(str(self.folder))}/\w+/", "", str(error))
        except Exception as error:  # of a library; the page goes on
            traceback.print_exc(file=sys.stderr)
            cell.state, cell.error = "refused", f"{type(error).__name__}: {reason(error)}"

    def _made(self, job: Job, cell: Cell) -> None:
        try:
            self.generator.take(cell.given.parts, cell.given.pictures, cell.given.objectives)
        except GuidestackError:
            cell.cause = "lora0" if cell.given.parts.lora and not self.generator.parts else "image"
            raise
        recipe = self.studio.completed(cell.recipe)
        named = {kind: [{**one, "name": Path(one["name"]).name} for one in of] for kind, of in recipe.parts.items()}
        recipe = replace(recipe, parts=named)  # where the files lie here is nothing to anybody
        self.generator.check_size(recipe.size, [recipe.guidance])
        negative, strength = [bool(recipe.negative)], recipe.strength
        self.generator.check(recipe.guidance, recipe.sampler, recipe.steps, negative, strength)
        asked = [Asked(recipe.prompt, recipe.seed, recipe.negative, recipe.extra)]
        how = recipe.guidance, recipe.sampler, recipe.steps, recipe.size
        made = self.generator.make(asked, *how, observe=job.watch(cell), strength=strength)
        if made.lost:
            raise NonFiniteError(str(made.lost))
        image = made.images[0]
        name = uuid.uuid4().hex
        self._pictures[name] = recipe.filename, contents(image, "png", recipe.as_json())
        while len(self._pictures) > 1 and sum(len(file) for _, file in self._pictures.values()) > KEPT:
            self._pictures.popitem(last=False)
        cell.recipe, cell.report, cell.seconds = recipe, made.report, made.seconds
        cell.scales = gathered(made.report).values["effective_scale"][0].tolist()
        cell.picture, cell.width, cell.state = name, image.width, "made"
