"""``guidestack tune``."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..guidance.errors import InputError, shown
from ..guidance.notation import presets
from ..guidance.objective import name_of
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
    from ..evaluation.tune.settings import Prompts
    from ..evaluation.tune.steering import Search

HELD_OUT = 48
"""Prompts that are drawn to verify on, where no file is given."""
APART = 1_000_000
"""Between the first seeds of the two sets."""
OBJECTIVE = re.compile(r"\s*(?P<text>\w+(?:\(.*?\))?)\s*(?:=(?P<file>.+))?")
"""``--objective``: the text of one, and the file that it takes."""


@dataclass(frozen=True)
class Asked:
    """The options of ``guidestack tune``, as they were read; its ``--help`` says what each is."""

    prompts: str
    held_out: str
    model: str | None
    networks: Mapping[str, str]
    reference: str
    likeness: str | None
    evaluations: float | None
    metric: str | None
    budget: int
    sampler: str | None
    steps: int
    size: str | None
    batch: int
    seed: int
    seeds: int
    linear_ag: str | None
    objective: str | None
    dtype: str
    device: str | None
    out: Path
    allow_pickle: bool


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
    "--reference", default="cfg(4)", show_default=True, metavar="STACK", help="Stack whose images are to cost less."
)
@click.option(
    "--likeness",
    metavar="WANTED",
    help="How similar images must be to the reference's: 'ssim>=0.97', 'feature_distance<=0.05', or a STACK, whose "
    "images set the bar.",
)
@click.option(
    "--evaluations",
    type=float,
    metavar="N",
    help="The most evaluations that an image may cost; without --likeness the most similar schedule is taken.",
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
@click.option(
    "--objective",
    metavar="NAME[=FILE]",
    help="Search the weights of tfg for this objective instead, such as blue or 'superres(4)=small.png'; "
    "--reference is the stack to be steered.",
)
@dtype_option
@device_option
@threads_option
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for everything.")
@click.option("--allow-pickle", is_flag=True, help="Load weights that are not safetensors: they can run code.")
@rules_option
def command(**options: Any) -> None:
    """Search the cheapest schedule of a stack: what to evaluate at which step.

    Tries schedules of the reference on the training prompts, takes the one that costs least of those that reach
    --likeness (or is most similar at --evaluations), verifies it on held-out prompts, and writes OUT/GOAL/tuned.yaml,
    to be used as --guidance @OUT/GOAL/tuned.yaml. GOAL is a name that says what was wanted, so that several goals share
    a folder. OUT/GOAL/frontier.csv, .json and .svg have everything that was measured; OUT/training and OUT/held-out are
    run folders for guidestack report. Stop it at any moment: the same command continues it.

    With --objective, search the weights rho, mu and smoothing of tfg that make the objective's value of the finished
    images largest, and write OUT/GOAL/steered.yaml, where GOAL begins with the objective; --likeness 'ssim>=0.5' then
    bounds how far the images may go from those that are not steered.
    """
    with notices():
        asked = Asked(**options)
        if asked.objective is not None:
            _steer(asked)
            return
        try:
            tuning, bar = _prepared(asked)
        except KeyboardInterrupt:
            click.echo("stopped before the search began; run the same command again to continue", err=True)
            raise
        _tune(tuning, bar)


def _prepared(asked: Asked) -> tuple[Tuning, Bar]:
    """The tuning that is asked for, with the model loaded, and its bar.

    Raises:
        GuidestackError: it cannot be; nothing is written then.
    """
    with needs("tune", "tune"):
        from ..evaluation.tune.goal import read_goal
        from ..evaluation.tune.progress import Bar
        from ..evaluation.tune.session import Tuning
        from ..evaluation.tune.settings import Settings
    settings = Settings(
        **_setup(asked),
        reference=presets.read(asked.reference),
        goal=read_goal(asked.likeness, asked.evaluations, asked.metric),
        seed=asked.seed,
        coefficients=asked.linear_ag,
    )
    bar = Bar()
    return Tuning(settings, asked.out, _options(asked), bar, bar.say), bar


@contextmanager
def _shown(bar: Bar, samples: int, stopped: Callable[[], str]) -> Iterator[None]:
    """Show the bar of a search while the context lasts; on Ctrl-C what `stopped` says, and how to continue."""
    ended = False
    try:
        bar.start(samples)
        yield
        ended = True
    except KeyboardInterrupt:
        bar.say(f"{stopped()}; run the same command again to continue")
        raise
    finally:
        bar.stop(ended)


def _tune(tuning: Tuning, bar: Bar) -> None:
    def stopped() -> str:
        tried = max(0, len(tuning.training.points) - 1)
        return f"stopped after {counted(tried, 'stack')} of {tuning.settings.budget}"

    with _shown(bar, tuning.samples, stopped):
        verdict = tuning.run()
    whole = tuning.space.cost(tuning.settings.reference)
    click.echo(f"{verdict.point.stack}: {verdict.point.cost:.4g} evaluations instead of {whole}\n{verdict.told}")
    click.echo(f"{verdict.advice(tuning.preset_file)}\nmeasured: {tuning.preset_file.with_name('frontier.csv')}")


def _setup(asked: Asked) -> dict[str, Any]:
    """What images are made of: the arguments of a `Setup`."""
    training, held_out = prompt_sets(asked.prompts, asked.held_out, asked.model, asked.seed)
    fixed = {
        "steps": asked.steps,
        "dtype": asked.dtype,
        "batch": asked.batch,
        "sampler": chosen_sampler(asked.sampler, asked.model),
        "size": read_size(asked.size),
    }
    prompts = {"training": training, "held_out": held_out}
    how = {"budget": asked.budget, "each": asked.seeds, "networks": asked.networks}
    return {"model": asked.model, **prompts, "fixed": fixed, **how}


def _options(asked: Asked) -> Any:
    from ..evaluation.run.runner import Options

    return Options(chosen_device(asked.device), asked.allow_pickle)


def _steer(asked: Asked) -> None:
    """Search the weights of an objective."""
    search, bar = _prepared_search(asked)
    with _shown(bar, search.samples, lambda: "stopped"):
        found = search.run()
    use = ["--guidance", f"@{found.path}"]
    if (picture := search.steered.picture) is not None:
        use += ["--objective", f"{name_of(search.steered.objective)}={picture}"]
    click.echo(f"{found.stack}: {found.told}\nuse it: {shlex.join(use)}")


def _prepared_search(asked: Asked) -> tuple[Search, Bar]:
    """The search of weights that is asked for, with the model loaded, and its bar.

    Raises:
        GuidestackError: it cannot be; nothing is written then.
    """
    with needs("tune", "tune"):
        from ..evaluation.tune.goal import read_goal
        from ..evaluation.tune.progress import Bar
        from ..evaluation.tune.settings import Setup
        from ..evaluation.tune.steering import Search, Steered, unsteered_goal
    for name in ("evaluations", "metric", "linear_ag"):
        if getattr(asked, name) is not None:
            raise InputError(
                f"--{name.replace('_', '-')} is for the search of schedules; leave it out with --objective"
            )
    goal = unsteered_goal(read_goal(asked.likeness, None) if asked.likeness else None)
    told = OBJECTIVE.fullmatch(asked.objective or "")
    if not told:
        raise InputError(
            f"--objective is NAME[=FILE], such as blue or 'superres(4)=small.png'; got {shown(asked.objective)}"
        )
    file = told["file"]
    steered = Steered(presets.read(asked.reference), told["text"], None if file is None else Path(file))
    setup = Setup(**_setup(asked), objectives=steered.pictures)
    bar = Bar()
    return Search(steered, setup, asked.out, goal, _options(asked), bar, bar.say), bar


def prompt_sets(training: str, held_out: str, model: str | None, seed: int) -> tuple[Prompts, Prompts]:
    """Training and held-out prompts, from files or drawn.

    Args:
        training: a file, or how many to draw for the bundled model.
        held_out: likewise, to verify on; drawn ones are others than those.
        model: folder or hub id; None for the bundled model.
        seed: of the search.

    Raises:
        InputError: a file cannot be read, or prompts are to be drawn for another model than the bundled one.
    """
    from ..evaluation.spec.prompts import bundled
    from ..evaluation.tune.settings import Prompts

    sets: dict[str, Prompts] = {}
    for name, place, text in (("held-out", 1, held_out), ("prompts", 0, training)):
        start = seed + place * APART
        if not text.isdecimal():
            sets[name] = Prompts(tuple(_read(text, name)), start)
            continue
        if model is not None:
            raise InputError(f"--{name} {text} draws prompts for the bundled model; give a file for {model}")
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
