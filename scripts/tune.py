"""``guidestack tune``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..guidance.errors import InputError
from ..guidance.notation import presets
from ..guidance.reading import read_bytes
from ..guidance.words import counted
from ..pipelines.models.loading import chosen_device, chosen_sampler
from .options import (
    device_option,
    dtype_option,
    needs,
    network_option,
    notices,
    read_size,
    rules_option,
    sampler_option,
    steps_option,
    threads_option,
)

if TYPE_CHECKING:
    from ..evaluation.tune.progress import Bar
    from ..evaluation.tune.session import Tuning

HELD_OUT = 48
"""Prompts that are drawn to verify on, where no file is given."""
APART = 1_000_000
"""Between the first seeds of the two sets."""


@click.command()
@click.option(
    "--prompts",
    default="12",
    show_default=True,
    metavar="FILE|N",
    help="Training prompts: a .txt, .jsonl or .csv file; for the bundled model also how many to draw.",
)
@click.option("--held-out", default=str(HELD_OUT), show_default=True, metavar="FILE|N", help="Prompts to verify on.")
@click.option("--model", metavar="PATH_OR_ID", help="Model folder or hub id.  [default: the bundled emoji model]")
@network_option
@click.option(
    "--reference", default="cfg(4)", show_default=True, metavar="STACK", help="Stack whose images are wanted for less."
)
@click.option(
    "--likeness",
    metavar="WANTED",
    help="How like the reference's images must be: 'ssim>=0.97', 'feature_distance<=0.05', or as like as a STACK's.",
)
@click.option(
    "--evaluations",
    type=float,
    metavar="N",
    help="Evaluations that an image may cost at most; without --likeness the most alike is taken.",
)
@click.option("--metric", help="Metric of likeness.  [default: that of --likeness, or feature_distance]")
@click.option("--budget", type=int, default=64, show_default=True, help="How many stacks to try.")
@sampler_option
@steps_option(25, least=2)
@click.option("--size", metavar="HxW", help="Height and width in pixels.  [default: the model's own]")
@click.option("--batch", type=click.IntRange(1), default=16, show_default=True, help="Images that are made at once.")
@click.option(
    "--seed", type=click.IntRange(0, 2**62), default=0, show_default=True, help="Seed of the search and of the images."
)
@click.option("--seeds", type=click.IntRange(1), default=1, show_default=True, help="Images of each prompt.")
@click.option("--linear-ag", metavar="FILE", help="File of coefficients: linear_ag with them is tried as well.")
@dtype_option
@device_option
@threads_option
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for everything.")
@click.option("--allow-pickle", is_flag=True, help="Load weights that are not safetensors: they can run code.")
@rules_option
def command(**options: Any) -> None:
    """Search the cheapest schedule of a stack: what to evaluate at which step.

    Tries schedules of the reference on the training prompts, takes the one that costs least of those that reach
    --likeness (or is most alike at --evaluations), verifies it on held-out prompts, and writes OUT/GOAL/tuned.yaml, to
    be used as --guidance @OUT/GOAL/tuned.yaml. GOAL is a name that says what was wanted, so that several goals share a
    folder. OUT/GOAL/frontier.csv, .json and .svg have everything that was measured; OUT/training and OUT/held-out are
    run folders for guidestack report. Stop it at any moment: the same command goes on.
    """
    with notices():
        try:
            tuning, bar = _prepared(options)
        except KeyboardInterrupt:
            click.echo("stopped before the search began; the same command goes on", err=True)
            raise
        _tune(tuning, bar)


def _prepared(options: dict[str, Any]) -> tuple[Tuning, Bar]:
    """The tuning that is asked for, with the model loaded, and its bar.

    Raises:
        GuidestackError: it cannot be; nothing is written then.
    """
    with needs("tune", "tune"):
        from ..evaluation.run.runner import Options
        from ..evaluation.tune.goal import read_goal
        from ..evaluation.tune.progress import Bar
        from ..evaluation.tune.session import Tuning
        from ..evaluation.tune.settings import Settings
    goal = read_goal(options["likeness"], options["evaluations"], options["metric"])
    fixed = {name: options[name] for name in ("steps", "dtype", "batch")}
    fixed["sampler"] = chosen_sampler(options["sampler"], options["model"])
    training, held_out = prompt_sets(options)
    settings = Settings(
        model=options["model"],
        reference=presets.read(options["reference"]),
        goal=goal,
        training=training,
        held_out=held_out,
        fixed={**fixed, "size": read_size(options["size"])},
        budget=options["budget"],
        seed=options["seed"],
        each=options["seeds"],
        coefficients=options["linear_ag"],
        networks=options["networks"],
    )
    device = chosen_device(options["device"])
    bar = Bar()
    return Tuning(settings, options["out"], Options(device, options["allow_pickle"]), bar, bar.say), bar


def _tune(tuning: Tuning, bar: Bar) -> None:
    ended = False
    try:
        bar.start(tuning.samples)
        verdict = tuning.run()
        ended = True
    except KeyboardInterrupt:
        tried = max(0, len(tuning.training.points) - 1)
        bar.say(f"stopped after {counted(tried, 'stack')} of {tuning.settings.budget}; the same command goes on")
        raise
    finally:
        bar.stop(ended)
    whole = tuning.space.cost(tuning.settings.reference)
    click.echo(f"{verdict.point.stack}: {verdict.point.cost:.4g} evaluations instead of {whole}\n{verdict.told}")
    click.echo(f"{verdict.advice(tuning.preset_file)}\nmeasured: {tuning.preset_file.with_name('frontier.csv')}")


def prompt_sets(options: dict[str, Any]) -> tuple[Any, Any]:
    """Training and held-out prompts, from files or drawn.

    Raises:
        InputError: a file cannot be read, or prompts are to be drawn for another model than the bundled one.
    """
    from ..evaluation.spec.prompts import bundled
    from ..evaluation.tune.settings import Prompts

    sets: dict[str, Any] = {}
    for name, place, text in (("held-out", 1, options["held_out"]), ("prompts", 0, options["prompts"])):
        start = options["seed"] + place * APART
        if not text.isdecimal():
            sets[name] = Prompts(tuple(_read(text, name)), start)
            continue
        if options["model"] is not None:
            raise InputError(f"--{name} {text} draws prompts for the bundled model; give a file for {options['model']}")
        if len(text) > 6:
            raise InputError(f"--{name}: 999999 prompts are drawn at most; got a number of {len(text)} digits")
        count = int(text)
        if place:
            sets[name] = Prompts(tuple(bundled(count, place)), start, (count, place))
        else:  # what is verified must be new
            other = {one.text for one in sets["held-out"].prompts}
            drawn = [one for one in bundled(count + 10 * len(other), place) if one.text not in other]
            sets[name] = Prompts(tuple(drawn[:count]), start)
    return sets["prompts"], sets["held-out"]


def _read(path: str, name: str) -> list[Any]:
    from ..evaluation.paths import MAX_BYTES
    from ..evaluation.spec.prompts import parse_prompts

    return parse_prompts(read_bytes(path, f"file of --{name}", MAX_BYTES), Path(path).name)
