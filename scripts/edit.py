"""``guidestack edit``."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from ..guidance.bounds import LAST_SEED
from ..guidance.errors import InputError
from ..guidance.notation.presets import read
from ..guidance.words import counted
from ..pipelines import edit
from ..pipelines.families.lookup import family_of
from ..pipelines.models.files import check_out, make_folder, read_recipe, write
from ..pipelines.models.generator import Generator
from ..pipelines.models.loading import chosen_device, chosen_dtype, chosen_sampler, scheduler_of
from ..pipelines.models.pictures import digest_of, read_image, sized
from ..pipelines.models.recipe import check_text, file_name, note_bars, split, with_rules
from ..pipelines.size import own_size
from ..samplers import by_name, canonical
from ..samplers.inversion import FIRST_ORDER
from ..samplers.names import OWN, SAMPLERS
from ..samplers.noise import generators
from .generating import note_unasked
from .options import (
    device_option,
    network_option,
    notices,
    objective_option,
    offload_option,
    own_dtype_option,
    read_size,
    rules_option,
    steps_option,
    threads_option,
    without_list,
)
from .studio import note_cut

BACKWARDS = [name for name, (cls, _) in SAMPLERS.items() if cls in FIRST_ORDER]
"""The samplers whose steps can be undone."""


@dataclass(frozen=True)
class Edit:
    """One edit, as it is written into the image.

    Args:
        prompt: what the image is to become.
        source: the prompt that describes what it was.
        negative: the negative prompt of both halves, or ""; under Perp-Neg several, with ``|`` between them.
        guidance: text of the stack that samples.
        inversion: text of the stack that inverts.
        sampler: short name of the sampler.
        steps: steps of the sampler.
        strength: share of them that is undone and taken again.
        seed: seed of rules that draw at random.
        size: height and width in pixels.
        dtype: type of the network's weights.
        image: digest of the pixels that were edited.
        model: what identifies the model.
        networks: what identifies each further network that the stacks ask, by its name.
        pictures: digests of the pictures that the stacks steer to, by the name of the objective.
        versions: of the libraries that made it, and on what device.
    """

    prompt: str
    source: str
    negative: str
    guidance: str
    inversion: str
    sampler: str
    steps: int
    strength: float
    seed: int
    size: tuple[int, int]
    dtype: str
    image: str
    model: Mapping[str, str] = field(default_factory=dict)
    networks: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    pictures: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def filename(self) -> str:
        """Words of the prompt, and a digest of everything that decides the picture."""
        return file_name(self.prompt, "edit", self.as_json())

    def as_json(self) -> dict[str, Any]:
        """The mapping to write into the image."""
        told = dataclasses.asdict(self)
        for name in ("networks", "pictures"):
            if not told[name]:
                del told[name]
        return with_rules(told, self.guidance, self.inversion)


def described(path: Path, source: str | None) -> str:
    """Return the prompt that describes the image: the one given, else the one that is written in the image.

    Raises:
        InputError: neither is there.
    """
    if source is not None:
        return source
    try:
        found = read_recipe(path).get("prompt")
    except InputError:
        found = None
    if not isinstance(found, str):
        raise InputError(f"{path} does not hold the prompt that describes it; give it with --source")
    check_text(found, f"what {path} says of itself")
    return found


def check_sampler(name: str, model: str | None) -> None:
    """Refuse a sampler that cannot be run backwards.

    Raises:
        InputError: it cannot, or there is none of that name.
    """
    own = scheduler_of(model) if canonical(without_list(name)) == OWN else None
    if not any(base.__name__ in FIRST_ORDER for base in type(by_name(name, own)).__mro__):
        raise InputError(
            f"--sampler {name} cannot be run backwards: an image is inverted by first-order steps without fresh noise, "
            f"those of {', '.join(BACKWARDS)}"
        )


@click.command()
@click.argument("image", type=click.Path(path_type=Path))
@click.argument("prompt")
@click.option("--source", help="Prompt that describes the image.  [default: what `generate` wrote into it]")
@click.option("--negative", default="", help="Negative prompt of the inversion and of the edit.")
@click.option(
    "--guidance", default="cfgpp(0.3)", show_default=True, metavar="STACK", help="Stack of rules, or @PRESET."
)
@click.option(
    "--inversion", metavar="STACK", help="Stack under which the image is inverted.  [default: that of --guidance]"
)
@click.option(
    "--strength",
    type=click.FloatRange(0, 1, min_open=True),
    default=1.0,
    show_default=True,
    help="Share of the steps that is inverted and sampled again; a smaller share keeps more of the image.",
)
@click.option("--model", metavar="PATH_OR_ID", help="Model folder or hub id.  [default: the bundled emoji model]")
@click.option(
    "--sampler",
    help=f"{', '.join(BACKWARDS)}, or own, the model's own scheduler.  [default: the first that the model can use]",
)
@steps_option(50)
@click.option(
    "--seed", type=click.IntRange(0, LAST_SEED), default=0, show_default=True, help="Seed of rules that draw at random."
)
@click.option("--size", metavar="HxW", help="Resize the image to this first.")
@network_option
@objective_option
@own_dtype_option
@device_option
@offload_option
@threads_option
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("out"), show_default=True, help="Folder of images."
)
@click.option("--overwrite", is_flag=True, help="Also make the image if it exists.")
@click.option("--allow-pickle", is_flag=True, help="Load weights that are not safetensors: they can run code.")
@rules_option
def command(**options: Any) -> None:
    """Change IMAGE to what PROMPT says.

    The image is inverted, under the prompt that describes it, to the noise that the model makes it from. The new image
    is sampled from that noise under PROMPT, which describes the whole new image, not the change. Every run of the same
    command makes the same image.
    """
    with notices():
        click.echo(_edit(options))


def _edit(options: dict[str, Any]) -> str:
    path = options["image"]
    size = read_size(options["size"])
    if not 0 < options["strength"] <= 1:  # the option's range lets NaN pass
        raise InputError(f"--strength is above 0 and at most 1; got {options['strength']}")
    for name in ("prompt", "source", "negative"):
        check_text(options[name] or "", name)
    picture, source = read_image(path), described(path, options["source"])
    guidance = read(options["guidance"])  # their errors come before the model is loaded
    inversion = guidance if options["inversion"] is None else read(options["inversion"])
    sampler = chosen_sampler(options["sampler"], options["model"], BACKWARDS)
    check_sampler(options["sampler"] or sampler, options["model"])
    check_out(options["out"])
    device = chosen_device(options["device"])
    dtype = chosen_dtype(options["dtype"], device, options["model"])
    how = {name: options[name] for name in ("model", "allow_pickle", "offload", "networks", "objectives")}
    generator = Generator(
        **how, dtype=dtype, device=device, advice="try --dtype float16, --offload, or a smaller --size"
    )
    pipe = generator.pipe
    picture = sized(picture, path, size, own_size(pipe, family_of(pipe)))
    generator.use(sampler)
    pipe.set_progress_bar_config(unit="step", dynamic_ncols=True)  # a bar for the way back, and one for that forth
    note_unasked(options["networks"], [guidance, inversion], options["objectives"])
    generator.check_size((picture.height, picture.width), [guidance, inversion])
    networks = {**generator.asked(guidance), **generator.asked(inversion)}
    editing = edit(pipe, guidance, inversion=inversion, networks=networks, objectives=generator.objectives)
    recipe = Edit(
        prompt=options["prompt"],
        source=source,
        negative=options["negative"],
        guidance=str(guidance),
        inversion=str(inversion),
        sampler=sampler,
        steps=options["steps"],
        strength=options["strength"],
        seed=options["seed"],
        size=(picture.height, picture.width),
        dtype=dtype,
        image=digest_of(picture),
        model=generator.identity,
        networks={**generator.networks_of(guidance), **generator.networks_of(inversion)},
        pictures={**generator.pictures_of(guidance), **generator.pictures_of(inversion)},
        versions=generator.versions,
    )
    to = options["out"] / recipe.filename
    if to.exists() and not options["overwrite"]:
        return f"{to} was there already"
    note_cut(generator, [recipe.prompt, recipe.source, recipe.negative])
    began = time.monotonic()
    several = guidance.takes_several or inversion.takes_several
    if not several:
        note_bars(guidance, [recipe.negative])
    more = {"negative_prompt": split(recipe.negative) if several else recipe.negative} if recipe.negative else {}
    with generator.running([recipe.seed]):
        made = editing(
            picture,
            source=source,
            prompt=recipe.prompt,
            strength=recipe.strength,
            num_inference_steps=recipe.steps,
            generator=generators([recipe.seed]),
            **more,
        ).images[0]
    make_folder(options["out"])
    write(made, to, recipe.as_json())
    spent = counted(sum(editing.evaluations), "network evaluation")
    return f"{to}: {spent}, {time.monotonic() - began:.1f} s"
