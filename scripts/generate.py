"""``guidestack generate``: its options. What it does is in ``generating``, imported when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..guidance.bounds import LAST_SEED, MAX_IMAGES, MOST_TOGETHER
from .answered import answer, keep, question
from .options import (
    device_option,
    network_option,
    notices,
    objective_option,
    offload_option,
    own_dtype_option,
    rules_option,
    sampler_option,
    steps_option,
    threads_option,
)
from .wanted import Wanted, nothing_to_make

PICTURE = click.Path(path_type=Path)


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
@click.option(
    "--weights",
    is_flag=True,
    help="Read weights in prompts, as compel writes them: 'a red++ (fox)1.3'. For Stable Diffusion 1, 2 and XL.",
)
@click.option("--extra-prompt", multiple=True, help="Further positive prompts under perpneg, given as for --negative.")
@click.option(
    "--guidance",
    multiple=True,
    metavar="STACK",
    help='Stack of rules, e.g. "cfg(4) | rescale(0.7)", or @PRESET (guidestack rules --presets); given more '
    "than once, it makes a set of images for each.  [default: guidance.yaml in the model's folder, else cfg(4)]",
)
@click.option(
    "--axis",
    multiple=True,
    metavar="NAME=VALUES",
    help="Make the images for each value: of sampler, steps, seed, size or strength, or of a {NAME} in a stack or "
    "prompt. VALUES are 'a, b, c', 2:8 (whole numbers) or 2:8:4 (4 numbers from 2 to 8). May be repeated; all go into "
    "one labelled picture, --grid or OUT/grid.png, whose columns are the last axis.",
)
@click.option("--model", metavar="PATH_OR_ID", help="Model folder or hub id.  [default: the bundled emoji model]")
@network_option
@objective_option
@click.option(
    "--lora",
    multiple=True,
    metavar="FILE[=SCALE]",
    help="LoRA to put into the model, a .safetensors file, at a scale (1 unless given); may be repeated.",
)
@click.option("--image", type=PICTURE, help="Begin from this picture instead of from noise.")
@click.option(
    "--strength",
    type=click.FloatRange(0, 1, min_open=True),
    help="How far the picture is noised first: 1 keeps nothing of it.  [default: the pipeline's own]",
)
@click.option("--mask", type=PICTURE, help="Mask of the picture's size: what is white in it is painted anew.")
@click.option(
    "--controlnet",
    multiple=True,
    metavar="FOLDER[=SCALE]",
    help="ControlNet, a folder or hub id, for the picture of --control; several follow a picture each.",
)
@click.option("--control", multiple=True, type=PICTURE, help="Picture for a ControlNet, in the form it expects.")
@click.option(
    "--ip-adapter",
    metavar="FILE[=SCALE]",
    help="IP-Adapter, a .safetensors file; for a model without image encoder, a folder image_encoder lies beside it.",
)
@click.option("--ip-image", type=PICTURE, help="Picture for the IP-Adapter.")
@click.option("--vae", metavar="FOLDER", help="Another autoencoder, a folder or hub id.")
@click.option(
    "--scheduler-config",
    metavar="FILE",
    help="Settings of the scheduler (scheduler_config.json) in place of the model's: its class is the sampler, or "
    "another --sampler takes its settings.",
)
@sampler_option
@steps_option(25)
@click.option(
    "--sigmas",
    metavar="LIST",
    help="Noise levels of the steps: a list by name, such as ays (docs/index.md), or numbers with commas. "
    "The same as --sampler NAME@LIST and NAME@sigmas=..., which sweeps take too.",
)
@click.option("--timesteps", metavar="LIST", help="Training timesteps, one for each step: numbers with commas.")
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
@own_dtype_option
@device_option
@offload_option
@threads_option
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("out"), show_default=True, help="Folder of images."
)
@click.option("--grid", type=click.Path(path_type=Path), help="Also write one labelled picture of all images here.")
@click.option(
    "--like",
    type=click.Path(path_type=Path),
    help="Make this image again, from what is written in it; other options given beside it change that. Images of "
    "A1111 and ComfyUI are read too, as far as they say how they were made.",
)
@click.option("--overwrite", is_flag=True, help="Also make the images that exist.")
@click.option("--allow-pickle", is_flag=True, help="Load weights that are not safetensors: they can run code.")
@rules_option
@click.pass_context
def command(context: click.Context, /, **options: Any) -> None:
    """Make images from PROMPTS.

    Image i is made from the seed --seed plus i. --batch and --threads change only how the network rounds: in float32 a
    rare pixel moves by 1 of 255, in half precision or on another device more may. Every PNG file says how it was made,
    and --like makes it again, equal to the bit on the same device with as many threads. A second run makes only what is
    missing. manifest.jsonl has a line for each image in the folder (docs/programs.md).
    """
    named = {name: context.get_parameter_source(name) for name in options}
    given = frozenset(name for name, source in named.items() if source and source.name == "COMMANDLINE")
    wanted = Wanted(**options, given=given)
    own = context.get_parameter_source("rules_files")
    asked = question(wanted) if own is None or own.name == "DEFAULT" else None  # rules may have changed
    if (there := answer(wanted, asked)) is not None:
        click.echo(nothing_to_make(wanted.out, there))
        return
    with notices() as shown:
        from .generating import generate

        told, names = generate(wanted)
        if not shown:  # what was warned of is warned of again
            keep(wanted, asked, names)
        click.echo(told)
