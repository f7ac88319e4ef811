"""What ``guidestack generate`` does with its recipes: what is missing is made, what is finished is kept and told."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from ..guidance.errors import GuidestackError, InputError, NonFiniteError, cut, shown
from ..guidance.notation.presets import as_stack
from ..guidance.objective import OBJECTIVE
from ..guidance.words import counted, were
from ..pipelines.models import files as images
from ..pipelines.models import manifest
from ..pipelines.models.generator import Asked, Generator, Made
from ..pipelines.models.particles import images_together
from ..pipelines.models.pictures import NAMES
from ..pipelines.models.recipe import Recipe
from .wanted import nothing_to_make

ADVICE = "try --dtype float16, --offload, or a smaller --batch or --size"


def note_cut(generator: Generator, texts: Sequence[str]) -> None:
    """Say what the text encoder does not read of prompts that are too long for it."""
    for text, rest in generator.cut_off(texts).items():
        limit, off = generator.pipe.tokenizer.model_max_length, cut(repr(rest), 500)
        click.echo(f"warning: the prompt {shown(text)} is longer than {limit} tokens; cut off: {off}", err=True)


@dataclass(frozen=True)
class Sheet:
    """The recipes of a run in the places that they have in a labelled picture.

    Args:
        rows: a label for each row.
        columns: a label for each column.
        table: rows of recipes; the same one may stand in several places.
    """

    rows: Sequence[str]
    columns: Sequence[str]
    table: Sequence[Sequence[Recipe]]

    @property
    def recipes(self) -> list[Recipe]:
        """Every recipe once, in the order of the rows."""
        return list({one.filename: one for row in self.table for one in row}.values())


class Studio:
    """A folder's worth of images, made from recipes with one model.

    Args:
        generator: the model; it is loaded where something is missing.
    """

    def __init__(self, generator: Generator) -> None:
        self.generator = generator

    def check_same(self, recipe: Recipe, changed: bool = False) -> None:
        """Refuse to make an image again with another model or part than made it, and say when something else differs.

        Args:
            recipe: of the image.
            changed: whether something of it is changed, so that it need not be the same; then all is said only.

        Raises:
            InputError: the fingerprints differ.
        """
        made_by = self.generator
        here: dict[str, Any] = {"model": made_by.identity}
        there: dict[str, Any] = {"model": dict(recipe.model)}
        for name, network in recipe.networks.items():
            if name in made_by.networks:
                there[f"network {name!r}"], here[f"network {name!r}"] = dict(network), made_by.networks[name]
        for kind, parts in recipe.parts.items():
            for place, (part, own) in enumerate(zip(parts, made_by.parts.get(kind, ()), strict=False), 1):
                there[f"{kind} {place}"], here[f"{kind} {place}"] = dict(part), own
        for what, told in there.items():
            if told.get("fingerprint") != here[what].get("fingerprint"):
                message = f"the image was made with the {what} {told}, this one is {here[what]}"
                if not changed:
                    raise InputError(message)
                click.echo(f"note: {message}", err=True)
        pictures = made_by.pictures_of(as_stack(recipe.guidance))
        steered = {name: f"--{name}" for name in recipe.pictures if name.startswith(OBJECTIVE)}
        for name, option in {**NAMES, **steered}.items():
            if recipe.pictures.get(name) != pictures.get(name):
                click.echo(f"note: {option} is another picture than the image was made from", err=True)
        if {**made_by.versions, **recipe.versions} != made_by.versions:
            told = dict(recipe.versions)
            click.echo(f"note: made with {told}, here is {made_by.versions}; bits may differ", err=True)

    def make(self, wanted: Sequence[Recipe], out: Path, batch: int, overwrite: bool) -> str:
        """Make the images that are missing from `out`; returns one line on what was done.

        Raises:
            NonFiniteError: images are NaN or Inf; all others are made before.
            GuidestackError: as the pipeline; what was finished before stays.
            KeyboardInterrupt: Ctrl-C, after saying what is missing.
        """
        wanted = [self.completed(recipe) for recipe in wanted]
        missing = [recipe for recipe in wanted if overwrite or not (out / recipe.filename).exists()]
        there = f"{were(len(wanted) - len(missing))} there already"
        if not missing:
            return nothing_to_make(out, len(wanted))
        self._check(missing)
        images.make_folder(out)
        written: list[Path] = []
        evaluations = 0
        lost: NonFiniteError | None = None
        began = time.monotonic()
        bar = tqdm(total=len(missing), unit="image", dynamic_ncols=True)
        try:
            for group in _batches(missing, batch):
                made = self._generate(group)
                spent, each = made.report.evaluations, made.seconds / len(group)
                for place, image in made.images.items():
                    path, recipe = out / group[place].filename, group[place].as_json()
                    manifest.append(out, path.name, recipe, spent[place], each)
                    images.write(image, path, recipe)
                    written.append(path)
                evaluations += sum(spent[: len(group)])
                lost = lost or made.lost
                bar.set_postfix_str(f"{evaluations / (time.monotonic() - began):.1f} evaluations/s", refresh=False)
                bar.update(len(group))
            if lost is not None:
                raise NonFiniteError(f"{counted(len(missing) - len(written), 'image')} lost: {lost}")
            if gone := [path for path in written if not path.exists()]:
                raise InputError(
                    f"{counted(len(gone), 'image')} of this run went from {out} while it ran; run it again"
                )
        except (KeyboardInterrupt, GuidestackError):
            bar.close()
            kept = sum(path.exists() for path in written)
            all_of_them = counted(len(missing), "image")
            click.echo(f"{kept} of {all_of_them} finished in {out}, {len(missing) - kept} missing", err=True)
            raise
        bar.close()
        seconds = time.monotonic() - began
        skipped = f", {there}" if len(missing) < len(wanted) else ""
        cost = counted(evaluations, "network evaluation")
        return f"{counted(len(written), 'image')} in {out}{skipped}: {cost}, {seconds:.1f} s"

    def names(self, wanted: Sequence[Recipe]) -> list[str]:
        """The names of the files of images."""
        return [self.completed(recipe).filename for recipe in wanted]

    def write_grid(self, sheet: Sheet, out: Path, path: Path) -> None:
        """One labelled picture of the images of `out`."""
        table = [[images.opened(out / self.completed(one).filename) for one in row] for row in sheet.table]
        images.make_folder(path.parent)
        images.write(images.grid(table, sheet.rows, sheet.columns), path)

    def completed(self, recipe: Recipe) -> Recipe:
        """The recipe with what makes it: the model, its further networks, and the versions of the libraries."""
        made_by = self.generator
        networks = made_by.networks_of(as_stack(recipe.guidance))
        return dataclasses.replace(
            recipe,
            model=made_by.identity,
            versions=made_by.versions,
            networks=networks,
            parts=made_by.parts,
            pictures=made_by.pictures_of(as_stack(recipe.guidance)),
        )

    def _check(self, wanted: Sequence[Recipe]) -> None:
        """Everything that can be refused before the first network call."""
        stacks: dict[tuple[int, int] | None, set[str]] = {}
        for recipe in wanted:
            stacks.setdefault(recipe.size, set()).add(recipe.guidance)
        for size, texts in stacks.items():
            self.generator.check_size(size, texts)
        note_cut(self.generator, [text for recipe in wanted if not recipe.weights for text in recipe.texts])
        runs: dict[tuple[str, str, int, float | None, bool], set[bool]] = {}
        for recipe in wanted:
            run = recipe.guidance, recipe.sampler, recipe.steps, recipe.strength, recipe.weights
            runs.setdefault(run, set()).add(bool(recipe.negative))
        for (guidance, sampler, steps, strength, weights), negative in runs.items():
            self.generator.check(guidance, sampler, steps, negative, strength, weights)

    def _generate(self, group: Sequence[Recipe]) -> Made:
        """The images of recipes that can be made by one call."""
        first = group[0]
        asked = [Asked(one.prompt, one.seed, one.negative, one.extra) for one in group]
        return self.generator.make(
            asked,
            first.guidance,
            first.sampler,
            first.steps,
            first.size,
            fill=images_together(as_stack(first.guidance), first.batch),
            strength=first.strength,
            weights=first.weights,
        )


def _batches(wanted: Sequence[Recipe], batch: int) -> Iterator[list[Recipe]]:
    """Consecutive recipes that one call can make together.

    Those without a negative prompt are not made beside those with one: they would have an empty text there, which is
    another condition than none for some models.
    """
    group: list[Recipe] = []
    together = batch
    for recipe in wanted:
        if group and (len(group) >= together or _same(recipe) != _same(group[0])):
            yield group
            group = []
        if not group:
            together = images_together(as_stack(recipe.guidance), batch)
        group.append(recipe)
    if group:
        yield group


def _same(recipe: Recipe) -> tuple[Any, ...]:
    """What the images of one call have in common."""
    return recipe.guidance, recipe.sampler, recipe.steps, recipe.size, recipe.strength, bool(recipe.negative)
