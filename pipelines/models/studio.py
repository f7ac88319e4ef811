"""A loaded model that makes images from recipes, keeps what is finished, and says what is missing."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import click
import torch
from PIL import Image
from tqdm import tqdm

from ...guidance.errors import GuidestackError, InputError, NonFiniteError, cut, shown
from ...guidance.notation.presets import as_stack
from ...guidance.rule import Run
from ...guidance.words import counted, were
from ...samplers import Grid, by_name, grid, scheduled, scheduler_identity
from ...samplers.noise import generators, seeded
from ...samplers.renoise import Renoising
from .. import guide
from ..families.lookup import family_of
from ..session import model_identity
from . import files as images
from .loading import chosen_device, identity_of, load, made_with, memory
from .recipe import Recipe, split


class Studio:
    """A model, and the making of images with it. It is loaded when it is first used.

    Args:
        model: folder or hub id; None for the bundled model.
        dtype: type of the weights, by name.
        device: where to run; None for the accelerator if there is one.
        allow_pickle: load weights that are not safetensors.
        offload: keep the model in the host's memory, and each part on the device only while it is needed.

    Raises:
        InputError, UnsupportedPipelineError: the model or the device cannot be used.
    """

    def __init__(
        self, model: str | None, dtype: str, device: str | None, allow_pickle: bool = False, offload: bool = False
    ) -> None:
        self.device = chosen_device(device)
        if offload and torch.device(self.device).type == "cpu":
            raise InputError("--offload is for a model on an accelerator, and this one runs on the CPU; drop --offload")
        self.identity = identity_of(model, allow_pickle)
        self.versions = made_with(self.device)
        self._how = model, getattr(torch, dtype), self.device, allow_pickle, False, offload

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        pipe, _ = load(*self._how)
        return pipe, pipe.scheduler

    @property
    def pipe(self) -> Any:
        """The pipeline."""
        return self._loaded[0]

    @property
    def own(self) -> Any:
        """The model's own scheduler."""
        return self._loaded[1]

    def check_same(self, recipe: Recipe) -> None:
        """Refuse to make an image again with another model than made it, and say when the libraries differ.

        Raises:
            InputError: the fingerprints differ.
        """
        made, here = recipe.model.get("fingerprint"), self.identity.get("fingerprint")
        if made != here:
            raise InputError(f"the image was made with the model {dict(recipe.model)}, this one is {self.identity}")
        if {**self.versions, **recipe.versions} != self.versions:
            click.echo(f"note: made with {dict(recipe.versions)}, here is {self.versions}; bits may differ", err=True)

    def make(self, wanted: Sequence[Recipe], out: Path, batch: int, overwrite: bool) -> str:
        """Make the images that are missing from `out`; returns one line on what was done.

        Raises:
            NonFiniteError: images are NaN or Inf; all others are made before.
            GuidestackError: as the pipeline; what was finished before stays.
            KeyboardInterrupt: Ctrl-C, after saying what is missing.
        """
        wanted = [self._completed(recipe) for recipe in wanted]
        missing = [recipe for recipe in wanted if overwrite or not (out / recipe.filename).exists()]
        there = f"{were(len(wanted) - len(missing))} there already"
        if not missing:
            return f"nothing to make in {out}: {there}"
        self._check(missing)
        images.make_folder(out)
        written: list[Path] = []
        evaluations = 0
        lost: NonFiniteError | None = None
        began = time.monotonic()
        bar = tqdm(total=len(missing), unit="image", dynamic_ncols=True)
        try:
            for group in _batches(missing, batch):
                finished, spent, error = self._generate(group)
                for place, image in finished.items():
                    path = out / group[place].filename
                    images.write(image, path, group[place].written())
                    written.append(path)
                evaluations, lost = evaluations + spent, lost or error
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

    def write_grid(self, wanted: Sequence[Recipe], out: Path, path: Path) -> None:
        """One labelled picture: a row for each stack, a column for each prompt and seed."""
        wanted = [self._completed(recipe) for recipe in wanted]
        rows = list(dict.fromkeys(recipe.guidance for recipe in wanted))
        table = []
        for stack in rows:
            files = [out / recipe.filename for recipe in wanted if recipe.guidance == stack]
            table.append([images.opened(file) for file in files])
        first = [recipe for recipe in wanted if recipe.guidance == rows[0]]
        images.make_folder(path.parent)
        images.write(images.grid(table, rows, [f"{recipe.prompt} ({recipe.seed})" for recipe in first]), path)

    def note_cut(self, texts: Sequence[str]) -> None:
        """Say what the text encoder does not read of prompts that are too long for it."""
        limit = self.pipe.tokenizer.model_max_length
        for text in dict.fromkeys(texts):
            tokens = self.pipe.tokenizer(text).input_ids
            if len(tokens) > limit:
                off = cut(repr(self.pipe.tokenizer.decode(tokens[limit - 1 : -1])), 500)
                click.echo(f"warning: the prompt {shown(text)} is longer than {limit} tokens; cut off: {off}", err=True)

    def _completed(self, recipe: Recipe) -> Recipe:
        return dataclasses.replace(recipe, model=self.identity, versions=self.versions)

    def _check(self, wanted: Sequence[Recipe]) -> None:
        """Everything that can be refused before the first network call."""
        factor = self.pipe.vae_scale_factor
        step = max(8, factor)
        for size in {recipe.size for recipe in wanted if recipe.size}:
            if min(size) < step or any(side % step for side in size):
                raise InputError(f"this model makes sizes that are multiples of {step} pixels; got {size[0]}x{size[1]}")
        self.note_cut([text for recipe in wanted for text in recipe.texts])
        for recipe in {recipe.guidance: recipe for recipe in wanted}.values():
            scheduler, stack = scheduled(recipe.sampler, self.own, recipe.steps), as_stack(recipe.guidance)
            schedule = grid(scheduler)
            if stack.renoises:
                Renoising(scheduler, schedule, guides_history=stack.guides_history)
            self._use(recipe)
            guide(self.pipe, stack)
        for recipe in {(one.guidance, one.steps, bool(one.negative)): one for one in wanted}.values():
            self._use(recipe)
            self._check_fits(recipe)

    def _check_fits(self, recipe: Recipe) -> None:
        """Refuse coefficients that are not for the run of a recipe.

        Raises:
            InputError: there is no such file.
            RuleError: the file is for another run.
        """
        for rule in as_stack(recipe.guidance).parts():
            if not rule.needs_identity:
                continue
            known = {
                **scheduler_identity(self.pipe.scheduler, Grid(())),
                "model": model_identity(self.pipe, family_of(self.pipe)),
                "negative": "given" if recipe.negative else "empty",
                "levels": None,  # the pipeline makes them in its call, where they are looked at
            }
            rule.init(Run((1, 1, 1, 1), steps=recipe.steps, identity=known))

    def _use(self, recipe: Recipe) -> None:
        self.pipe.scheduler = by_name(recipe.sampler, self.own)

    def _generate(self, group: Sequence[Recipe]) -> tuple[dict[int, Image.Image], int, NonFiniteError | None]:
        """The images of recipes that differ in prompt, negative and seed only, and the evaluations they cost.

        By their place in `group`; those that are NaN or Inf are not among them, and what was said of them comes last.

        A group smaller than its recipes' batch is filled up with copies, so that the network sees the same shapes:
        rounding depends on them, and an image made again by itself is then the same to the bit.
        """
        first = group[0]
        filled = [*group, *[first] * (first.batch - len(group))]
        self._use(first)
        guided = guide(self.pipe, first.guidance)
        seeds = [recipe.seed for recipe in filled]
        options: dict[str, Any] = {"num_inference_steps": first.steps, "generator": generators(seeds)}
        if first.several:
            options["negative_prompt"] = [split(recipe.negative) for recipe in filled]
            options["extra_prompt"] = [split(recipe.extra) for recipe in filled]
        elif any(recipe.negative for recipe in filled):
            options["negative_prompt"] = [recipe.negative for recipe in filled]
        if first.size:
            options["height"], options["width"] = first.size
        advice = "try --dtype float16, --offload, or a smaller --batch or --size"
        with seeded(self.pipe.scheduler, seeds), memory(self.device, advice):
            made, lost = [], None
            try:
                made = guided([recipe.prompt for recipe in filled], **options).images
            except NonFiniteError as error:
                made, lost = error.output.images if error.output else [], error
        report, gone = guided.report, lost.samples if lost else ()
        finished = {place: image for place, image in enumerate(made[: len(group)]) if place not in gone}
        spent = sum(report.evaluations[: len(group)]) if report else 0
        return finished, spent, lost if len(finished) < len(group) else None


def _batches(wanted: Sequence[Recipe], batch: int) -> Iterator[list[Recipe]]:
    """Consecutive recipes that one call can make together.

    Those without a negative prompt are not made beside those with one: they would have an empty text there, which is
    another condition than none for some models.
    """
    group: list[Recipe] = []
    for recipe in wanted:
        alike = group and (recipe.guidance, bool(recipe.negative)) == (group[0].guidance, bool(group[0].negative))
        if group and (len(group) >= batch or not alike):
            yield group
            group = []
        group.append(recipe)
    if group:
        yield group
