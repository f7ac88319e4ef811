"""``python -m guidestack.scripts.bench``: time and peak memory of guide() over the stock pipeline's.

Runs are interleaved in one process and compared with their neighbours, so that a machine whose speed drifts matters
little; the median of the ratios is the figure. Peak memory is measured in a process of its own for each side.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click
import torch

from ..emoji.files import replacing
from ..model import notices, quiet
from . import arithmetic
from .pipelines import SCALE, SIDES, UNGUIDED, Bench
from .table import Row
from .timing import interleaved

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


def whole(pipe: Any, batch: int, repeats: int, clock: Callable[[], float] = time.perf_counter) -> list[Row]:
    """The bundled pipeline under each stack over the stock pipeline."""
    bench = Bench(pipe, batch)
    runs = bench.runs()
    shares = {name: run() for name, run in runs.items()}
    timings = interleaved(bench.stock, runs, repeats, clock)
    rows = []
    for side in SIDES:
        timing, share = timings[side.name], shares[side.name]
        figure = timing.ratio.median / (share if side.per_evaluation else 1)
        rows.append(Row("pipeline", side.name, side.stack, batch, timing, share, figure, side.limit))
    return rows


@torch.no_grad()
def step(shape: tuple[int, ...], repeats: int) -> list[Row]:
    """What rules do at one step once the network has answered, over a guider of diffusers."""
    timings = arithmetic.timed(arithmetic.Answers(shape), repeats)
    rows = []
    for side in arithmetic.SIDES:
        timing = timings[side.name]
        what = f"arithmetic over {side.over}"
        rows.append(Row(what, side.name, side.stack, shape[0], timing, None, timing.ratio.median, side.limit))
    return rows


def mixture(unguided: Row, row: Row) -> float:
    """Time of `row` over that of a stock pipeline of which the same share of steps is guided.

    Beside the evaluations, an image costs what `unguided` shows: text, decoding, and calls with fewer rows.
    """
    assert row.evaluations is not None  # a row of `whole`
    guided = 2 * row.evaluations - 1
    alone = unguided.timing.ratio.median
    return row.timing.ratio.median / (guided + (1 - guided) * alone)


def peak(name: str, batch: int) -> int:
    """Peak resident memory, in KiB, of a fresh process that runs one side."""
    command = [sys.executable, "-m", "guidestack.scripts.bench", "--batch", str(batch), "--peak-of", name]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def bundled() -> Any:
    """The bundled model, silent."""
    from ...pipelines import load_emoji

    quiet()
    pipe = load_emoji()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def show(title: str, columns: str, rows: Iterable[Row]) -> None:
    """Print a table."""
    click.echo(f"{title}\n{columns}")
    for row in rows:
        click.echo(row.line())


@click.command(help=(__doc__ or "").split("\n\n")[1])
@click.option("--repeats", type=click.IntRange(3), help="Rounds.  [default: 15, of --arithmetic 100]")
@click.option("--batch", type=click.IntRange(1), multiple=True, default=(1, 4), show_default=True)
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Threads of torch.")
@click.option(
    "--clock",
    type=click.Choice(list(CLOCKS)),
    default="wall",
    show_default=True,
    help="cpu: processor time, for a machine that others use too.",
)
@click.option(
    "--arithmetic",
    "only_step",
    is_flag=True,
    help="One step without the network instead, against guiders of diffusers.",
)
@click.option("--json", "to", type=click.Path(path_type=Path), help="Also write the rows here.")
@click.option("--peak-of", type=click.Choice(["stock", *(side.name for side in SIDES)]), hidden=True)
def main(
    repeats: int | None,
    batch: tuple[int, ...],
    threads: int,
    clock: str,
    only_step: bool,
    to: Path | None,
    peak_of: str | None,
) -> None:
    """Print the tables."""
    torch.set_num_threads(threads)
    with notices():
        if peak_of:
            bench = Bench(bundled(), batch[0])
            sides: dict[str, Callable[[], object]] = {"stock": bench.stock, **bench.runs()}
            run = sides[peak_of]
            run()
            run()
            click.echo(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
            return
        rows = _step(repeats or 100) if only_step else _pipelines(batch, repeats or 15, clock)
        if to:
            _write(rows, to)


def _step(repeats: int) -> list[Row]:
    quiet()
    _warm()
    rows = step(arithmetic.SHAPE, repeats)
    title = (
        f"one step without the network, latents {arithmetic.SHAPE}, float32, {torch.get_num_threads()} threads, median "
        f"of {repeats}: over the forward of a guider of diffusers (smallest to largest)"
    )
    for over in dict.fromkeys(side.over for side in arithmetic.SIDES):
        here = [row for row in rows if row.what.endswith(over)]
        show(title, f"{'rule':<22}  {'time':>12}  {'over ' + over:>24}  limit", here)
    return rows


def _pipelines(batch: Iterable[int], repeats: int, clock: str) -> list[Row]:
    pipe, rows = bundled(), []
    for size in batch:
        found = whole(pipe, size, repeats, CLOCKS[clock])
        title = (
            f"bundled model, batch {size}, {clock} time, {torch.get_num_threads()} threads, torch {torch.__version__}, "
            f"median of {repeats}: over the stock pipeline at scale {SCALE:g} (smallest to largest), evaluations, "
            "quotient"
        )
        show(title, f"{'rule':<22}  {'time':>12}  {'over stock':>24}  {'evals':>6}  {'quot.':>6}  limit", found)
        memory = statistics.median(peak("CFG", size) / peak("stock", size) for _ in range(3))
        click.echo(f"peak memory of CFG over stock: {memory:.3f} (median of 3)")
        for side in SIDES:
            if side.per_evaluation:
                by_name = {row.name: row for row in found}
                share = mixture(by_name[UNGUIDED.name], by_name[side.name])
                click.echo(f"{side.name} over as many guided and unguided steps of the stock pipeline: {share:.3f}")
        rows += found
    return rows


def _warm() -> None:
    """Allocate and free what a network would: the C library then keeps the memory of smaller tensors, as in real use.

    Without that it hands every tensor of some MB back to the system, and most of what is timed is getting it again.
    """
    torch.empty(7 << 20)  # 28 MiB; above 32 it would learn nothing


def _write(rows: list[Row], path: Path) -> None:
    with replacing(path) as beside:
        beside.write_text(json.dumps([row.mapping() for row in rows], indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
