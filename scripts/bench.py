"""``python -m guidestack.scripts.bench``: wall time and peak memory of guide() over the stock pipeline's.

Runs are interleaved in one process and compared pair by pair, so that a machine whose speed drifts matters
little; the median of the ratios is the figure. Peak memory is measured in a process of its own for each side.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import click
import torch

from ..pipelines import guide, load_emoji
from .model import notices, quiet

SCALE, STEPS = 4.0, 20


def sides(batch: int) -> dict[str, Callable[[], Any]]:
    """The stock pipeline's own CFG, and CFG through guide(), on the same seeds."""
    quiet()
    pipe = load_emoji()
    pipe.set_progress_bar_config(disable=True)
    guided = guide(pipe, f"cfg({SCALE:g})")

    def given() -> dict[str, Any]:
        generators = [torch.Generator().manual_seed(sample) for sample in range(batch)]
        return {"prompt": ["cat face"] * batch, "num_inference_steps": STEPS, "generator": generators}

    return {"stock": lambda: pipe(guidance_scale=SCALE, **given()), "guidestack": lambda: guided(**given())}


def ratios(run: dict[str, Callable[[], Any]], repeats: int) -> list[float]:
    """Wall time of guidestack over stock, a ratio for each pair of runs; the order changes from pair to pair."""
    for side in run.values():
        side()
    found = []
    for repeat in range(repeats):
        seconds = {}
        for name in sorted(run, reverse=bool(repeat % 2)):
            began = time.perf_counter()
            run[name]()
            seconds[name] = time.perf_counter() - began
        found.append(seconds["guidestack"] / seconds["stock"])
    return found


def peak(name: str, batch: int) -> int:
    """Peak resident memory, in KiB, of a fresh process that runs one side."""
    command = [sys.executable, "-m", __spec__.name, "--batch", str(batch), "--peak-of", name]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


@click.command(help=(__doc__ or "").split("\n\n")[1])
@click.option("--repeats", type=click.IntRange(3), default=15, show_default=True, help="Pairs of runs for each batch.")
@click.option("--batch", type=click.IntRange(1), multiple=True, default=(1, 4), show_default=True)
@click.option("--peak-of", type=click.Choice(["stock", "guidestack"]), hidden=True)
def main(repeats: int, batch: tuple[int, ...], peak_of: str | None) -> None:
    """Print a line for each batch size."""
    with notices():
        if peak_of:
            run = sides(batch[0])[peak_of]
            run()
            run()
            click.echo(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
            return
        click.echo(
            f"bundled model, CFG {SCALE:g}, {STEPS} steps, {torch.get_num_threads()} threads, torch {torch.__version__}"
        )
        for size in batch:
            found = ratios(sides(size), repeats)
            memory = statistics.median(peak("guidestack", size) / peak("stock", size) for _ in range(3))
            low, middle, high = min(found), statistics.median(found), max(found)
            click.echo(
                f"batch {size}: time over stock {middle:.3f} (median of {repeats} pairs, {low:.3f} to {high:.3f}), "
                f"peak memory over stock {memory:.3f} (median of 3)"
            )


if __name__ == "__main__":
    main()
