"""``guidestack likelihood``."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import click

from ..guidance.bounds import LAST_SEED
from ..guidance.errors import InputError
from ..guidance.notation.presets import read
from ..pipelines import likelihood
from ..pipelines.families.lookup import family_of
from ..pipelines.models.generator import Generator
from ..pipelines.models.loading import chosen_device
from ..pipelines.models.pictures import digest_of, read_image, sized
from ..pipelines.models.recipe import check_text
from ..pipelines.session import AUTOENCODERS
from ..pipelines.size import own_size
from ..samplers.likelihood import MOST_PROBES, TOLERANCE
from .as_json import echo_json, json_option
from .edit import described
from .generating import note_unasked
from .options import (
    device_option,
    dtype_option,
    network_option,
    notices,
    read_size,
    rules_option,
    threads_option,
)
from .studio import note_cut

PIXELS = 7.0
"""What makes bits of a density of pixels in [-1, 1] those of 256 values of a pixel: log2(256 / 2)."""


@click.command()
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="IMAGE...")
@click.option("--prompt", help="Prompt that describes the images.  [default: what `generate` wrote into each]")
@click.option("--negative", default="", help="Negative prompt, for rules that use it.")
@click.option(
    "--guidance", default="stack()", show_default=True, metavar="STACK", help="Stack of rules; stack() is the model's."
)
@click.option(
    "--probes",
    type=click.IntRange(0, MOST_PROBES),
    default=2,
    show_default=True,
    help="Random probes of the trace; 0 for the exact trace, a backward pass for each dimension.",
)
@click.option(
    "--tolerance",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=TOLERANCE,
    show_default=True,
    help="Tolerance of the solver, relative and absolute.",
)
@click.option("--model", metavar="PATH_OR_ID", help="Model folder or hub id.  [default: the bundled emoji model]")
@click.option("--seed", type=click.IntRange(0, LAST_SEED), default=0, show_default=True, help="Seed of the probes.")
@click.option("--size", metavar="HxW", help="Resize the images to this first.")
@network_option
@dtype_option
@device_option
@threads_option
@click.option("--allow-pickle", is_flag=True, help="Load weights that are not safetensors: they can run code.")
@rules_option
@json_option
def command(**options: Any) -> None:
    """Say how likely each IMAGE is under a model, a prompt and a stack.

    The probability flow of the model leads from the image to noise; its density is exact but for the random probes of a
    trace, whose standard error is printed after the ±. Bits are per dimension, and fewer are more likely. A model with
    an autoencoder has a density of latents, in their own unit, and none of pixels: it compares images, prompts and
    stacks of that one model, and may be below 0.
    """
    with notices():
        _likelihood(options)


def _likelihood(options: dict[str, Any]) -> None:
    size, stack = read_size(options["size"]), read(options["guidance"])
    check_text(options["prompt"] or "", "prompt")
    check_text(options["negative"], "negative")
    paths = options["images"]
    pictures = [read_image(path) for path in paths]
    prompts = [_prompt(path, options["prompt"]) for path in paths]
    device = chosen_device(options["device"])
    how = {name: options[name] for name in ("model", "allow_pickle", "networks")}
    generator = Generator(**how, dtype=options["dtype"], device=device, advice="try a smaller --size")
    pipe = generator.pipe
    own = own_size(pipe, family_of(pipe))
    pictures = [sized(one, path, size, own) for one, path in zip(pictures, paths, strict=True)]
    pipe.set_progress_bar_config(disable=True)
    note_unasked(options["networks"], [stack])
    note_cut(generator, [*prompts, options["negative"]])
    finding = likelihood(pipe, stack, networks=generator.asked(stack))
    latent = any(hasattr(pipe, name) for name in AUTOENCODERS)
    more = {"negative_prompt": options["negative"]} if options["negative"] else {}
    rows: list[dict[str, Any]] = []
    began = time.monotonic()
    for path, picture, prompt in zip(paths, pictures, prompts, strict=True):
        seed = (int(digest_of(picture), 16) + options["seed"]) % LAST_SEED  # the same for an image wherever it stands
        with generator.running([seed]):
            found = finding(
                image=picture,
                prompt=prompt,
                probes=options["probes"],
                tolerance=options["tolerance"],
                seeds=[seed],
                **more,
            )
        row = {
            "image": str(path),
            "prompt": prompt,
            "bits": float(found.bits(0.0 if latent else PIXELS)),
            "bits_error": float(found.error) / (found.dimensions * math.log(2)),
            "nats": float(found.nats),
            "nats_error": float(found.error),
            "dimensions": found.dimensions,
            "evaluations": found.evaluations[0],
        }
        rows.append({name: None if value != value else value for name, value in row.items()})
        if not options["as_json"]:
            click.echo(_line(rows[-1]))
    unit = "latents" if latent else "pixels"
    if options["as_json"]:
        echo_json({"stack": str(stack), "of": unit, "rows": rows})
        return
    click.echo(
        f"{len(rows)} under {stack}: {sum(row['bits'] for row in rows) / len(rows):.4f} bits per dimension of "
        f"{rows[0]['dimensions']} {unit}, mean; {time.monotonic() - began:.1f} s"
    )


def _prompt(path: Path, given: str | None) -> str:
    """The prompt of an image.

    Raises:
        InputError: none was given, and the image does not say.
    """
    try:
        return described(path, given)
    except InputError as error:
        raise InputError(str(error).replace("--source", "--prompt")) from None


def _line(row: dict[str, Any]) -> str:
    bits, nats = row["bits_error"], row["nats_error"]
    told = ("", "") if bits is None else (f" ±{bits:.2g}", f" ±{nats:.2g}")
    return (
        f"{row['image']}: {row['bits']:.4f}{told[0]} bits per dimension, log p {row['nats']:.1f}{told[1]} nats, "
        f"{row['evaluations']} evaluations ({row['prompt']!r})"
    )
