"""``guidestack bench``: what guidance costs, over the stock pipeline on the same weights and seeds."""

from __future__ import annotations

import dataclasses
import json
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import torch

from ...guidance.errors import GuidestackError, InputError
from ...guidance.files import write_whole
from ...guidance.notation import presets
from ...pipelines.models.bundled import EMOJI
from ...pipelines.models.loading import quiet
from ..options import notices
from . import arithmetic, caches, edits, install, merging, page, start, steering
from .measure import EVERY, FEW, Watched, measured
from .memory import peak
from .models import BUNDLED, MODELS, SHAPED, Model, bundled, of_folder
from .pipelines import STEPS, Bench, Side, chosen
from .table import HEAD, Measured, Row, line

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
PIPELINES = "pipelines"
WITH_ROWS = ("arithmetic", "steering", "merging", "edits")
PARTS = (PIPELINES, *WITH_ROWS, "install", "start", "caches")
TAKEN = {
    "--model": ("merging", "edits"),
    "--batch": ("steering", "merging", "edits", "install", "caches"),
    "--steps": ("steering", "merging", "edits"),
    "--json": WITH_ROWS,
}
"""The parts that take an option which not all of them take; none of them takes the others that only pipelines have."""
QUICK = 25.0
"""Seconds after which --quick begins no further round; it ends within a minute."""
QUICK_STEPS = 3
REMEMBERED = 3
"""Steps of the runs whose memory is measured, of a side that does not name its own."""


def sides_of(bench: Bench, sides: Iterable[Side], strict: bool) -> dict[int, dict[str, tuple[Side, Callable[[], Any]]]]:
    """The runs of the sides that this model can make, by their steps and names; what it cannot is said in a line.

    Raises:
        GuidestackError: with `strict`, instead of the line.
    """
    found: dict[int, dict[str, tuple[Side, Callable[[], Any]]]] = {}
    for side in sides:
        steps = side.steps or bench.steps
        try:
            bench.with_steps(side.steps or REMEMBERED).guided(side)()  # fills caches
            run = bench.with_steps(steps).guided(side)
        except GuidestackError as error:
            if strict:
                raise
            click.echo(f"{side.name:<22}  left out: {' '.join(str(error).split())}")
            continue
        found.setdefault(steps, {})[side.name] = (side, run)
    return found


def rows_of(
    model: Model,
    pipe: Any,
    batch: int,
    sides: Sequence[Side],
    rounds: int,
    clock: str,
    go_on: Callable[[], bool],
    strict: bool = False,
    modular: bool = False,
) -> Iterator[Measured]:
    """Measure what each stack costs on one model at one batch size.

    Args:
        model: what is measured.
        pipe: its pipeline.
        batch: images of a run.
        sides: the stacks.
        rounds: at most.
        clock: one of `CLOCKS`.
        go_on: whether there is time for another round.
        strict: whether a stack that the model cannot run is an error.
        modular: whether to compare with Modular pipelines too.

    Raises:
        GuidestackError: with `strict`.
    """
    bench = Bench(pipe, batch, model.steps)
    watched = Watched(pipe, CLOCKS[clock], every=1 if model.steps < FEW else EVERY)
    over_guiders = _over_guiders(pipe, batch)
    over_modular = _over_modular(pipe, batch, bench.steps, rounds) if modular else {}
    for steps, group in sides_of(bench, sides, strict).items():
        at = bench.with_steps(steps)
        runs = {name: run for name, (_, run) in group.items()}
        found, made = measured(watched, at.stock, runs, steps, rounds, model.apart, go_on)
        reference = {}
        for name, (side, _) in group.items():
            remembered = bench.with_steps(side.steps or min(REMEMBERED, steps))
            if remembered.steps not in reference:
                reference[remembered.steps] = peak(remembered.stock)
            one = found[name]
            yield {
                "model": model.name,
                "stack": side.stack,
                "batch": batch,
                "time_ratio": one.time_ratio.median,
                "evaluation_ratio": one.evaluation_ratio,
                "efficiency": one.efficiency,
                "memory_ratio": peak(remembered.guided(side)) / reference[remembered.steps],
                "name": name,
                "negatives": len(side.negatives),
                "max_rows": side.max_rows * batch or None,
                "steps": steps,
                "rounds": made,
                "time_low": one.time_ratio.low,
                "time_high": one.time_ratio.high,
                "seconds": one.seconds.median,
                "added_ms": 1000 * one.added,
                "network_share": one.share,
                "guider_ratio": over_guiders.get(side.guider),
                "modular_ratio": over_modular.get(side.guider),
                "efficiency_limit": model.efficiency,
                "clock": clock,
                **machine(),
            }


def _over_guiders(pipe: Any, batch: int) -> dict[str, float]:
    """Time of a rule's arithmetic over that of the guider of diffusers with the same rule, on this model's samples."""
    denoiser = getattr(pipe, "unet", None) or getattr(pipe, "transformer", None)
    config = getattr(denoiser, "config", {})
    channels, size = config.get("in_channels"), config.get("sample_size")
    if not isinstance(channels, int) or not isinstance(size, int):
        return {}
    timings = arithmetic.paired(arithmetic.Answers((batch, channels, size, size)), 50)
    return {name: timing.ratio.median for name, timing in timings.items()}


def _over_modular(pipe: Any, batch: int, steps: int, rounds: int) -> dict[str, float]:
    large = install.enlarged(pipe)
    return {name: ratio.median for name, ratio in install.over_modular(large, batch, steps, rounds).items()}


def machine() -> dict[str, Any]:
    """Return the machine and the versions that a row was measured with, as columns of the row."""
    import diffusers

    return {
        "machine": processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "python": platform.python_version(),
    }


def processor() -> str:
    """The processor's name, as the system tells it."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    names = [one.partition(":")[2].strip() for one in text.splitlines() if one.startswith("model name")]
    return f"{names[0]}, {len(names)} cores" if names else platform.machine()


@click.command()
@click.argument("part", type=click.Choice(PARTS), default=PIPELINES, metavar="[PART]")
@click.option("--quick", is_flag=True, help="The bundled model with one image, few steps and rounds: within a minute.")
@click.option(
    "--model",
    "only",
    multiple=True,
    metavar="NAME",
    help=f"{BUNDLED}, {SHAPED} (a random UNet of Stable Diffusion 1.5's shape), or a model folder.  [default: both]",
)
@click.option("--guidance", "stacks", multiple=True, metavar="STACK", help="Measure these only.  [default: every rule]")
@click.option("--batch", type=click.IntRange(1), multiple=True, help="Images of a run.  [default: 1, 4, 16; shaped: 1]")
@click.option("--steps", type=click.IntRange(1, 1000), help="Steps of a run.  [default: 20; shaped: 3]")
@click.option("--repeats", type=click.IntRange(1), help="Rounds.  [default: 9; shaped: 3; arithmetic: 100]")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Threads of torch.")
@click.option(
    "--clock",
    type=click.Choice(list(CLOCKS)),
    default="wall",
    show_default=True,
    help="cpu: processor time, for a machine that others use too.",
)
@click.option("--json", "to", type=click.Path(path_type=Path), help="Also write the rows here.")
@click.option(
    "--from",
    "source",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Measure nothing; show the rows of this file (of several).",
)
@click.option("--page", "page_to", type=click.Path(path_type=Path), help="Also write the rows as a page, in Markdown.")
def command(
    part: str,
    quick: bool,
    only: tuple[str, ...],
    stacks: tuple[str, ...],
    batch: tuple[int, ...],
    steps: int | None,
    repeats: int | None,
    threads: int,
    clock: str,
    to: Path | None,
    source: tuple[Path, ...],
    page_to: Path | None,
) -> None:
    """Measure what guidance costs, over the stock pipeline on the same weights and seeds.

    For every rule: time, network evaluations and peak memory over those of the stock pipeline with its own guidance;
    the efficiency, what the network's calls would cost by themselves over what they cost with guidance around them; the
    time that guidance adds outside of the network for each step; its arithmetic over that of diffusers' guider, and a
    whole run over a Modular pipeline with it, for the rules that diffusers has.

    All runs are in one process, interleaved; figures are medians. PART measures something else instead:

    \b
    pipelines   the default: every rule, as above
    arithmetic  one step of a rule without the network, on large samples, over diffusers' guiders
    install     guide() around the network: its hooks, and single calls over a Modular pipeline's (--batch)
    start       starting: the import over torch's, the first step over a script's
    caches      Adaptive Guidance with a feature cache: whether their savings multiply (--batch)
    steering    objectives: a steered step over its passes, and the memory of gradients (--batch, --steps)
    merging     a pass with merged tokens over the plain pass, by ratio and size (--model; 3 rounds)
    edits       a perturbed pass over the plain pass, for each edit (--model; 3 rounds)

    All parts take --repeats, --threads and --clock; arithmetic, steering, merging and edits take --json.
    """
    torch.set_num_threads(threads)
    began = time.monotonic()
    with notices():
        if part != PIPELINES:
            given = {"--quick": quick, "--model": only, "--guidance": stacks, "--batch": batch, "--steps": steps}
            given |= {"--json": to, "--from": source, "--page": page_to}
            for option, value in given.items():
                if value and part not in TAKEN.get(option, ()):
                    raise InputError(f"bench {part} has no {option}; leave one of the two out")
            others = _part(part, only, batch, steps, repeats, CLOCKS[clock])
            if to:
                write([row.mapping() | machine() for row in others], to)
            return
        if source:
            rows = [row for path in source for row in page.read(path)]
            _show([row for row in rows if "what" not in row])
            for row in rows:
                if "what" in row:
                    click.echo(f"{row['what']:<60}  {row['stack']:<42}  {row['ratio']['median']:.3f}")
        else:
            sides = chosen([str(presets.read(text)) for text in stacks])
            default = [model.name for model in (MODELS[:1] if quick else MODELS)]
            rows = []
            for model in [_named(name, batch, steps) for name in only or default]:
                rows += _measure(model, quick, sides, bool(stacks), batch, steps, repeats, clock, began)
        if to:
            write(rows, to)
        if page_to:
            write_whole(page_to, page.text(rows))


def _named(name: str, batch: Sequence[int], steps: int | None) -> Model:
    known = {model.name: model for model in MODELS}
    return known.get(name) or of_folder(name, batch or (1,), steps or STEPS)


def _part(
    part: str,
    only: Sequence[str],
    batch: Sequence[int],
    steps: int | None,
    repeats: int | None,
    clock: Callable[[], float],
) -> list[Row]:
    """Measure one of the parts beside whole pipelines; returns its rows, which some parts do not have."""
    if part == "arithmetic":
        return _step(repeats or 100)
    if part == "steering":
        return steering.report(batch[0] if batch else 4, steps or 5, repeats or 5, clock)
    if part in ("merging", "edits"):
        report = merging.report if part == "merging" else edits.report
        names = only or (SHAPED,)
        return [row for name in names for row in report(_named(name, batch, steps).make(), name, repeats or 3, clock)]
    if part == "install":
        install.report(bundled(), batch[0] if batch else 1, repeats or 15)
    elif part == "start":
        start.report(EMOJI, repeats or 5)
    else:
        caches.report(batch[0] if batch else 1, repeats or 5)
    return []


def _measure(
    model: Model,
    quick: bool,
    sides: Sequence[Side],
    strict: bool,
    batch: Sequence[int],
    steps: int | None,
    repeats: int | None,
    clock: str,
    began: float,
) -> list[Measured]:
    if steps or quick:
        model = dataclasses.replace(model, steps=steps or min(QUICK_STEPS, model.steps))
    pipe, rows = model.make(), []
    rounds = repeats or (9 if model.apart == 1 else 3)
    for size in batch or (model.batches[:1] if quick else model.batches):
        click.echo(
            f"{model.name}, batch {size}, {model.steps} steps, {clock} time, {torch.get_num_threads()} threads, "
            f"at most {rounds} rounds; efficiency at least {model.efficiency:.2f}\n{HEAD}"
        )
        found = rows_of(
            model,
            pipe,
            size,
            sides,
            rounds,
            clock,
            go_on=lambda: not quick or time.monotonic() - began < QUICK,
            strict=strict,
            modular=model.name == BUNDLED and not quick,
        )
        for row in found:
            click.echo(line(row, model.steps))
            rows.append(row)
    return rows


def _show(rows: Sequence[Measured]) -> None:
    for key in dict.fromkeys((row["model"], row["batch"]) for row in rows):
        click.echo(f"{key[0]}, batch {key[1]}\n{HEAD}")
        for row in rows:
            if (row["model"], row["batch"]) == key:
                click.echo(line(row))


def _step(repeats: int) -> list[Row]:
    quiet()
    _warm()
    shape = arithmetic.SHAPE
    timings = arithmetic.timed(arithmetic.Answers(shape), repeats)
    rows = [
        Row(f"arithmetic over {side.over}", side.name, side.stack, shape[0], timings[side.name], side.limit)
        for side in arithmetic.SIDES
    ]
    click.echo(
        f"one step without the network, latents {shape}, float32, {torch.get_num_threads()} threads, median of "
        f"{repeats}: over the forward of a guider of diffusers (smallest to largest)"
    )
    for over in dict.fromkeys(side.over for side in arithmetic.SIDES):
        click.echo(f"{'rule':<22}  {'time':>12}  {'over ' + over:>24}  limit")
        for row in rows:
            if row.what.endswith(over):
                click.echo(row.line())
    return rows


def _warm() -> None:
    """Allocate and free what a network would: the C library then keeps the memory of smaller tensors, as in real use.

    Without that it hands every tensor of some MB back to the system, and most of what is timed is getting it again.
    """
    torch.empty(7 << 20)  # 28 MiB; above 32 it would learn nothing


def write(rows: list[dict[str, Any]], path: Path) -> None:
    """Write rows of results where ``guidestack bench --from`` finds them."""
    write_whole(path, json.dumps(rows, indent=1) + "\n")
