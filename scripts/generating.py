"""The work of ``guidestack generate``: from its options to recipes, and from recipes to images in a folder."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from ..guidance.errors import GuidestackError, GuidestackWarning, InputError, RuleError, cut, shown
from ..guidance.notation.presets import TunedFor, name_in, read, tuned_for
from ..guidance.objective import OBJECTIVE, name_of
from ..guidance.reading import is_folder, read_bytes
from ..guidance.rule import Stack, models_of, objectives_of
from ..pipelines.models.bundled import EMOJI
from ..pipelines.models.elsewhere import Elsewhere, read_elsewhere
from ..pipelines.models.files import check_out, check_writable, read_recipe
from ..pipelines.models.generator import Generator
from ..pipelines.models.loading import (
    chosen_device,
    chosen_dtype,
    chosen_sampler,
    class_of,
    fingerprint,
    folder_of,
    scheduler_of,
)
from ..pipelines.models.parts import OPTIONS, Part, Parts
from ..pipelines.models.pictures import NAMES, Pictures, check_strength
from ..pipelines.models.pretrained import from_pretrained, stored_beside
from ..pipelines.models.recipe import Recipe, recipes
from ..samplers import grid, scheduler_with_steps
from ..samplers.lists import KINDS, LISTS
from ..samplers.names import OWN, canonical, levels_of
from .axes import Axis, combinations, read_axes
from .options import read_size
from .studio import ADVICE, Sheet, Studio
from .wanted import Wanted

MAX_BYTES = 10_000_000  # bytes of a file of prompts
KEPT = frozenset(
    {"like", "model", "networks", "objectives", "device", "offload", "out", "grid", "overwrite", "allow_pickle"}
    | {"lora", "controlnet", "ip_adapter", "vae", "scheduler_config", *NAMES}
)
"""The options that say where things are or go: beside --like they change nothing by themselves."""


def read_prompts(path: str) -> list[str]:
    """One prompt a line; empty lines, and those that begin with ``#`` and a blank, are passed over.

    Raises:
        InputError: no such file, a pipe (which ``-`` is for), too large, not UTF-8, or no prompt in it.
    """
    data = sys.stdin.buffer.read(MAX_BYTES + 1) if path == "-" else read_bytes(path, "prompts", MAX_BYTES)
    if len(data) > MAX_BYTES:
        raise InputError(f"more than {MAX_BYTES} bytes of prompts; make images of fewer at a time")
    try:
        lines = data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path!r} is not UTF-8 text (byte {error.start}); save it as UTF-8, one prompt a line"
        ) from error
    prompts = [line.strip() for line in lines if line.strip() and not f"{line.strip()} ".startswith("# ")]
    if not prompts:
        raise InputError(f"{path!r} has no prompts; expected one a line")
    return prompts


def stored_guidance(model: str | None) -> tuple[str, ...]:
    """The text of the stack in the model's folder, and a line that says so; nothing where there is none.

    Raises:
        GuidestackError: the file holds no stack.
    """
    if model is None or not stored_beside(Path(model)):
        return ()
    stack = str(from_pretrained(model))
    click.echo(f"guidance of the model's folder: {stack}", err=True)
    return (stack,)


def with_levels(wanted: Wanted) -> Wanted:
    """What is asked for with the list of levels behind its sampler's name, and as many steps as that has.

    Raises:
        InputError: several lists, or none that is known.
    """
    given = {kind: text for kind in KINDS if (text := getattr(wanted, kind)) is not None}
    sampler, steps = chosen(wanted), wanted.steps
    if given and (len(given) > 1 or "@" in sampler):
        raise InputError("give one list: --sigmas, --timesteps, or one behind the sampler's @")
    for kind, text in given.items():
        sampler = canonical(f"{sampler}@{text if text in LISTS else f'{kind}={text}'}")
    levels = levels_of(sampler)
    if levels is not None and not levels.name and "steps" not in wanted.given:
        steps = len(levels.values)
    return replace(wanted, sampler=sampler, steps=steps)


def chosen(wanted: Wanted) -> str:
    """The short name of the sampler: with a scheduler's configuration that itself, where none is named.

    Raises:
        InputError: an unknown sampler.
    """
    if wanted.sampler is None and wanted.scheduler_config is not None:
        return OWN
    return chosen_sampler(wanted.sampler, wanted.model)


def check_presets(texts: Sequence[str], model: str | None, sampler: str, steps: int) -> None:
    """Look, before a model is loaded, at whether stacks are for this run, and warn of presets tuned for another.

    Args:
        texts: of stacks, or ``@`` and a preset's name or path.
        model: folder or hub id; None for the bundled model.
        sampler: short name.
        steps: of the sampler.

    Raises:
        InputError: a plan is for another number of steps.
    """
    for text in texts:
        _check_plans(text, read(text), model, sampler, steps)
        name = name_in(text)
        tuned = tuned_for(name) if name is not None else None
        if tuned and (others := _others(tuned, model, sampler, steps)):
            warnings.warn(
                f"{text} was tuned for {', '.join(others)}; what it was verified on says nothing about this run",
                GuidestackWarning,
                stacklevel=2,
            )


def _check_plans(text: str, stack: Stack, model: str | None, sampler: str, steps: int) -> None:
    for part in stack.parts():
        try:
            part.check_steps(steps)
        except RuleError as error:
            points = grid(scheduler_with_steps(sampler, scheduler_of(model), steps)).points
            if (own := 1 + max(point.step for point in points)) == steps:
                raise InputError(f"{text}: {error}" if text.startswith("@") else str(error)) from None
            part.check_steps(own)  # of a sampler whose steps are not as many as it is asked for


def _others(tuned: TunedFor, model: str | None, sampler: str, steps: int) -> list[str]:
    """What a preset was tuned for and does not meet here."""
    folder = EMOJI if model is None else Path(model)
    here = fingerprint(folder) if tuned.fingerprint and is_folder(folder) else None
    same = here == tuned.fingerprint if here else tuned.model == (model or "bundled")
    others = [] if same else [f"the model {tuned.model} {tuned.fingerprint or ''}".rstrip()]
    if tuned.sampler != sampler:
        others.append(f"sampler {tuned.sampler} (here {sampler})")
    if tuned.steps != steps:
        others.append(f"{tuned.steps} steps (here {steps})")
    return others


def note_unasked(networks: Iterable[str], stacks: Sequence[Stack], objectives: Iterable[str] = ()) -> None:
    """Warn of networks, and of pictures for objectives, that were given and that no stack asks."""
    for name in sorted(set(objectives) - {name_of(text) for stack in stacks for text in objectives_of(stack)}):
        warnings.warn(
            f"--objective {name} was given, and no rule steers by it; tfg({name!r}, rho=0.5) does",
            GuidestackWarning,
            stacklevel=2,
        )
    for name in sorted(set(networks) - {one for stack in stacks for one in models_of(stack)}):
        warnings.warn(
            f"--network {name} was given, and no stack asks it; autoguidance(2, network={name!r}) does",
            GuidestackWarning,
            stacklevel=2,
        )


def generate(wanted: Wanted) -> tuple[str, list[str]]:
    """Make what is asked for; returns what to say of it, and the names of the images.

    Raises:
        GuidestackError: something is wrong with what is asked for, or the images cannot be made.
    """
    check_out(wanted.out, "; one labelled picture of all images is --grid FILE.png")
    if wanted.grid:
        if wanted.grid.suffix.lower() != ".png":
            raise InputError(f"--grid is a picture, and its name ends in .png; got {str(wanted.grid)!r}")
        check_writable(wanted.grid.parent, wanted.grid.name)
    made: Recipe | None = None
    parts = parts_of(wanted)
    if (path := wanted.like) is not None:
        if (elsewhere := read_elsewhere(path)) is not None:
            wanted = like_elsewhere(wanted, elsewhere)
        else:
            made = Recipe.read(read_recipe(path), path)
            wanted, parts = like(wanted, parts, made)
    if wanted.prompts_from:
        wanted = replace(wanted, prompts=(*wanted.prompts, *read_prompts(wanted.prompts_from)))
    if not wanted.prompts:
        raise InputError('no prompt given; try: guidestack generate "cat face, noto style, blue background"')
    if not wanted.guidance:
        wanted = replace(wanted, guidance=stored_guidance(wanted.model))
    pictures = pictures_of(wanted)
    axes = read_axes(wanted)
    device = wanted.device or chosen_device(None)  # one that is given is tried where the model is
    dtype = chosen_dtype(wanted.dtype, device, wanted.model)
    # Reads the stacks: their errors come before the model is loaded.
    sheet = laid_out(wanted, axes, dtype)
    if {"networks", "objectives"} & wanted.given:
        note_unasked(wanted.networks, [read(one.guidance) for one in sheet.recipes], wanted.objectives)
    if wanted.device is None and device != "cpu":
        click.echo(f"on {device}, in {dtype}", err=True)
    studio = Studio(
        Generator(
            wanted.model,
            dtype,
            device,
            wanted.allow_pickle,
            wanted.offload,
            wanted.networks,
            parts=parts,
            pictures=pictures,
            objectives=wanted.objectives,
            advice=ADVICE,
        )
    )
    if made is not None:
        studio.check_same(made, changed=bool(wanted.given - KEPT))
    told = studio.make(sheet.recipes, wanted.out, wanted.batch, wanted.overwrite)
    if wanted.grid or axes:
        picture = wanted.grid or wanted.out / "grid.png"
        studio.write_grid(sheet, wanted.out, picture)
        told += f"\ngrid: {picture}"
    return told, studio.names(sheet.recipes)


def parts_of(wanted: Wanted) -> Parts:
    """The parts that are asked for.

    Raises:
        InputError: a scale that is none.
    """
    return Parts(
        lora=tuple(Part.read(text, "--lora") for text in wanted.lora),
        controlnet=tuple(Part.read(text, "--controlnet") for text in wanted.controlnet),
        ip_adapter=Part.read(wanted.ip_adapter, "--ip-adapter") if wanted.ip_adapter else None,
        vae=Part(wanted.vae) if wanted.vae else None,
        scheduler=Part(wanted.scheduler_config) if wanted.scheduler_config else None,
    )


def pictures_of(wanted: Wanted) -> Pictures:
    """The pictures that are asked for.

    Raises:
        InputError: a file is no picture, or pictures and what takes them do not go together.
    """
    if wanted.control and not wanted.controlnet and not _has_controlnet(wanted.model):
        raise InputError("--control is a picture for a ControlNet, and there is none; give --controlnet FOLDER")
    if wanted.controlnet and len(wanted.control) != len(wanted.controlnet):
        raise InputError(
            f"each --controlnet follows a picture of --control; there are {len(wanted.controlnet)} and "
            f"{len(wanted.control)}"
        )
    if (wanted.ip_image is None) != (wanted.ip_adapter is None):
        raise InputError("--ip-adapter and --ip-image, the picture for it, go together; give both")
    check_strength(wanted.strength, wanted.image)
    return Pictures.read(wanted.image, wanted.mask, wanted.control, wanted.ip_image)


def _has_controlnet(model: str | None) -> bool:
    """Whether a model brings a ControlNet of its own, as far as is known before it is loaded."""
    folder = folder_of(model)
    return folder is None or "ControlNet" in class_of(folder)


def like(wanted: Wanted, parts: Parts, made: Recipe) -> tuple[Wanted, Parts]:
    """What is asked for where an image is to be made again: what the image says, and what was given beside it.

    Raises:
        InputError: it was made with something that is not there, or not with something that was given.
    """
    changed = bool(wanted.given - KEPT)
    said: dict[str, Any] = {
        "prompts": (made.prompt,),
        "negative": (made.negative,),
        "extra_prompt": (made.extra,),
        "guidance": (made.guidance,),
        "sampler": made.sampler,
        "steps": made.steps,
        "seed": made.seed,
        "size": "{}x{}".format(*made.size) if made.size else None,
        "strength": made.strength,
        "weights": made.weights,
        "batch": made.batch,
        "dtype": made.dtype,
    }
    if "prompts_from" in wanted.given:
        del said["prompts"]
    for name, option in NAMES.items():
        if name in made.pictures and not getattr(wanted, name):
            raise InputError(f"the image was made from a picture; give it again with {option} FILE")
    for name in (one.removeprefix(OBJECTIVE) for one in made.pictures if one.startswith(OBJECTIVE)):
        if name not in wanted.objectives and "guidance" not in wanted.given:
            raise InputError(f"the image was steered to a picture; give it again with --objective {name}=FILE")
    axes = {Axis.read(text).name for text in wanted.axis}
    taken = {name: value for name, value in said.items() if name not in wanted.given | axes}
    model = made.model_to_load(wanted.model)
    networks = wanted.networks if "guidance" in wanted.given else made.networks_to_load(wanted.networks)
    chosen_sampler(made.sampler, None)
    return replace(wanted, **taken, model=model, networks=networks), _parts_again(parts, made, changed)


def like_elsewhere(wanted: Wanted, image: Elsewhere) -> Wanted:
    """What is asked for where an image of another program is to be made again, as far as its settings go.

    Raises:
        InputError: no model is given: an image does not choose what is loaded.
    """
    if wanted.model is None:
        named = f" with the model {shown(image.model)}" if image.model else ""
        raise InputError(f"{wanted.like} was made by {image.program}{named}; say where that is with --model")
    axes = {Axis.read(text).name for text in wanted.axis}
    taken = {name: value for name, value in image.options.items() if name not in wanted.given | axes}
    if "strength" in taken and wanted.image is None:
        del taken["strength"]
        click.echo("note: it began from a picture, which it does not hold; --image gives one", err=True)
    told = "; ".join(
        f"{name} {shown(value if isinstance(value, str) else str(value))}" for name, value in taken.items()
    )
    click.echo(f"note: read from {image.program}: {told or 'nothing'}", err=True)
    if image.left:
        click.echo(f"note: not carried over: {cut('; '.join(image.left), 1000)}", err=True)
    click.echo(
        f"note: {image.program} draws its noise in another way; expect a similar picture, not the same", err=True
    )
    return replace(wanted, **taken)


def _parts_again(parts: Parts, made: Recipe, changed: bool) -> Parts:
    """The parts of an image that is made again, at the scales that it says where none were given.

    Raises:
        InputError: it was made with other parts, and nothing else was changed.
    """
    given = parts.by_kind
    for kind, option in OPTIONS.items():
        here, there = given.get(kind, ()), made.parts.get(kind, [])
        if len(here) != len(there) and not changed:
            names = ", ".join(shown(one["name"]) for one in there) or "none"
            raise InputError(f"the image was made with {option} {names}; give it, or change something else too")
        if len(here) == len(there):
            again = tuple(
                Part(part.name, said["scale"] if part.scale is None else part.scale)
                for part, said in zip(here, there, strict=True)
            )
            value: Any = again if kind in ("lora", "controlnet") else next(iter(again), None)
            parts = replace(parts, **{kind: value})
    return parts


def laid_out(wanted: Wanted, axes: Sequence[Axis], dtype: str) -> Sheet:
    """The recipes of everything that is asked for, in the places that they have in a labelled picture.

    Without axes there is a row for each stack, and a column for each prompt and seed. With axes the last one has the
    columns, and there is a row for each value of the others with each stack, prompt and seed.

    Raises:
        GuidestackError: a stack, a sampler or a text is refused.
    """
    made = []
    for values, one in combinations(wanted, axes):
        try:
            made.append((values, _recipes(with_levels(one), dtype)))
        except GuidestackError as error:
            if not axes:
                raise
            where = ", ".join(f"{axis.name} = {cut(value, 80)}" for axis, value in zip(axes, values, strict=True))
            raise InputError(f"--axis, at {where}: {error}") from error
    images = len(wanted.prompts) * wanted.count
    if not axes:
        ((_, line),) = made
        table = [line[start : start + images] for start in range(0, len(line), images)]
        return Sheet([row[0].guidance for row in table], [f"{one.prompt}, seed {one.seed}" for one in table[0]], table)
    *others, last = axes
    rows, table = [], []
    for start in range(0, len(made), len(last.values)):
        block = made[start : start + len(last.values)]
        told = [f"{axis.name} = {value}" for axis, value in zip(others, block[0][0], strict=False)]
        for place, first in enumerate(block[0][1]):
            label = list(told)
            if len(wanted.guidance) > 1 or (not told and images == 1):
                label.append(wanted.guidance[place // images] if wanted.guidance else first.guidance)
            if len(wanted.prompts) > 1:
                label.append(wanted.prompts[place % images // wanted.count])
            if images > 1 and "seed" not in [axis.name for axis in axes]:
                label.append(f"seed {first.seed}")
            elif wanted.count > 1:
                label.append(f"image {place % wanted.count + 1}")
            rows.append(", ".join(label))
            table.append([line[place] for _, line in block])
    return Sheet(rows, [f"{last.name} = {value}" for value in last.values], table)


def _recipes(one: Wanted, dtype: str) -> list[Recipe]:
    """The recipes of one combination of the axes' values.

    Raises:
        GuidestackError: a stack or a text is refused.
    """
    assert one.sampler is not None  # `with_levels` has chosen it
    check_presets(one.guidance, one.model, one.sampler, one.steps)
    return recipes(
        one.prompts,
        one.guidance,
        one.negative,
        one.extra_prompt,
        one.seed,
        one.count,
        size=read_size(one.size),
        sampler=one.sampler,
        steps=one.steps,
        dtype=dtype,
        batch=one.batch,
        strength=one.strength,
        weights=one.weights,
    )
