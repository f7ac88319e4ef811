"""``guidestack generate``."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import click

from ..guidance.errors import GuidestackWarning, InputError, RuleError
from ..guidance.notation.presets import TunedFor, name_in, read, tuned_for
from ..guidance.reading import is_folder, read_bytes
from ..guidance.rule import Stack, models_of
from ..pipelines.models.bundled import EMOJI
from ..pipelines.models.files import check_out, check_writable, read_recipe
from ..pipelines.models.generator import Generator
from ..pipelines.models.loading import chosen_sampler, fingerprint, scheduler_of
from ..pipelines.models.pretrained import from_pretrained, stored_beside
from ..pipelines.models.recipe import LAST_SEED, MAX_IMAGES, MOST_TOGETHER, Recipe, recipes
from ..samplers import grid, scheduler_with_steps
from ..samplers.lists import KINDS, LISTS
from ..samplers.names import canonical, levels_of
from .options import (
    device_option,
    dtype_option,
    network_option,
    notices,
    offload_option,
    read_size,
    rules_option,
    sampler_option,
    steps_option,
    threads_option,
)
from .studio import ADVICE, Studio

MAX_BYTES = 10_000_000  # bytes of a file of prompts


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


def with_levels(options: dict[str, Any]) -> dict[str, Any]:
    """The sampler with the list that the options give, and how many steps that has.

    Raises:
        InputError: several lists, or none that is known.
    """
    given = {kind: options[kind] for kind in KINDS if options[kind] is not None}
    sampler, steps = options["sampler"], options["steps"]
    if given and (len(given) > 1 or "@" in sampler):
        raise InputError("give one list: --sigmas, --timesteps, or one behind the sampler's @")
    for kind, text in given.items():
        sampler = canonical(f"{sampler}@{text if text in LISTS else f'{kind}={text}'}")
    levels = levels_of(sampler)
    source = click.get_current_context().get_parameter_source("steps")
    if levels is not None and not levels.name and source is not None and source.name == "DEFAULT":
        steps = len(levels.values)
    return {"sampler": sampler, "steps": steps}


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


def note_unasked(networks: Iterable[str], stacks: Sequence[Stack]) -> None:
    """Warn of networks that were given and that no stack asks."""
    for name in sorted(set(networks) - {one for stack in stacks for one in models_of(stack)}):
        warnings.warn(
            f"--network {name} was given, and no stack asks it; autoguidance(2, network={name!r}) does",
            GuidestackWarning,
            stacklevel=2,
        )


@click.command()
@click.argument("prompts", nargs=-1)
@click.option(
    "--prompts-from",
    metavar="FILE",
    help="Prompts from a file, one a line, without those that begin with '# '; - for standard input.",
)
@click.option(
    "--negative",
    multiple=True,
    help="Negative prompt: one for all prompts, or one for each; under perpneg several, as 'a | b'.",
)
@click.option("--extra-prompt", multiple=True, help="Further positive prompts under perpneg, given as for --negative.")
@click.option(
    "--guidance",
    multiple=True,
    metavar="STACK",
    help='Stack of rules, e.g. "cfg(4) | rescale(0.7)", or @PRESET (guidestack rules --presets); given more '
    "than once, it makes a set of images for each.  [default: guidance.yaml in the model's folder, else cfg(4)]",
)
@click.option("--model", metavar="PATH_OR_ID", help="Model folder or hub id.  [default: the bundled emoji model]")
@network_option
@sampler_option
@steps_option(25)
@click.option(
    "--sigmas",
    metavar="LIST",
    help=f"Noise levels of the steps: {', '.join(LISTS)} (for any number of steps), or numbers with commas. "
    "The same as --sampler NAME@LIST and NAME@sigmas=..., which sweeps take too.",
)
@click.option("--timesteps", metavar="LIST", help="Training steps of the steps, likewise: numbers with commas.")
@click.option(
    "--seed", type=click.IntRange(0, LAST_SEED), default=0, show_default=True, help="Seed of the first image."
)
@click.option(
    "--count", type=click.IntRange(1, MAX_IMAGES), default=1, show_default=True, help="Images for each prompt."
)
@click.option(
    "--batch",
    type=click.IntRange(1, MOST_TOGETHER),
    default=1,
    show_default=True,
    help="Images that are made at once.",
)
@click.option("--size", metavar="HxW", help="Height and width in pixels.  [default: the model's]")
@dtype_option
@device_option
@offload_option
@threads_option
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("out"), show_default=True, help="Folder of images."
)
@click.option("--grid", type=click.Path(path_type=Path), help="Also write one labelled picture of all images here.")
@click.option("--like", type=click.Path(path_type=Path), help="Make this image again, from what is written in it.")
@click.option("--overwrite", is_flag=True, help="Also make the images that exist.")
@click.option("--allow-pickle", is_flag=True, help="Load weights that are not safetensors: they can run code.")
@rules_option
def command(**options: Any) -> None:
    """Make images from PROMPTS.

    Image i is made from the seed --seed plus i. --batch and --threads change only how the network rounds: in float32 a
    rare pixel moves by 1 of 255, in half precision or on another device more may. Every PNG file says how it was made,
    and --like makes it again, equal to the bit on the same device with as many threads. A second run makes only what is
    missing. manifest.jsonl has a line for each image in the folder (docs/programs.md).
    """
    with notices():
        click.echo(_generate(options))


def _studio(model: str | None, dtype: str, options: dict[str, Any]) -> Studio:
    how = {name: options[name] for name in ("device", "allow_pickle", "offload", "networks")}
    return Studio(Generator(model, dtype, **how, advice=ADVICE))


def _generate(options: dict[str, Any]) -> str:
    check_out(options["out"], "; one labelled picture of all images is --grid FILE.png")
    if options["grid"]:
        if options["grid"].suffix.lower() != ".png":
            raise InputError(f"--grid is a picture, and its name ends in .png; got {str(options['grid'])!r}")
        check_writable(options["grid"].parent, options["grid"].name)
    if options["like"]:
        given = click.get_current_context()
        kept = {"like", "networks", "out", "model", "device", "offload", "overwrite", "allow_pickle"}
        for name in options:
            source = given.get_parameter_source(name)
            if name not in kept and source is not None and source.name == "COMMANDLINE":
                raise InputError(f"--like takes everything from the image; drop {name.replace('_', '-')!r}")
        wanted = [Recipe.read(read_recipe(options["like"]), options["like"])]
        chosen_sampler(wanted[0].sampler, None)
        model = wanted[0].model_to_load(options["model"])
        networks = wanted[0].networks_to_load(options["networks"])
        studio = _studio(model, wanted[0].dtype, {**options, "networks": networks})
        studio.check_same(wanted[0])
    else:
        prompts = [*options["prompts"], *(read_prompts(options["prompts_from"]) if options["prompts_from"] else [])]
        if not prompts:
            raise InputError('no prompt given; try: guidestack generate "cat face, noto style, blue background"')
        size = read_size(options["size"])
        named = with_levels({**options, "sampler": chosen_sampler(options["sampler"], options["model"])})
        options = {**options, **named, "guidance": options["guidance"] or stored_guidance(options["model"])}
        shared = ("negative", "extra_prompt", "seed", "count", "sampler", "steps", "dtype", "batch")
        # Reads the stacks: their errors come before the model is loaded.
        wanted = recipes(prompts, options["guidance"], size=size, **{name: options[name] for name in shared})
        check_presets(options["guidance"], options["model"], options["sampler"], options["steps"])
        note_unasked(options["networks"], [read(text) for text in options["guidance"]])
        studio = _studio(options["model"], options["dtype"], options)
    made = studio.make(wanted, options["out"], options["batch"], options["overwrite"])
    if options["grid"]:
        studio.write_grid(wanted, options["out"], options["grid"])
        made += f"\ngrid: {options['grid']}"
    return made
