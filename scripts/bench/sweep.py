"""``python -m guidestack.scripts.bench.sweep``: what a sweep costs beside its pictures.

Speed: a sweep over the bare pipeline at the same batch and the same evaluations, interleaved in one process. Start-up:
from the start of a process to its first batch, with so many samples there. Merge: time and peak memory of a process
that merges so many records out of parts.
"""

from __future__ import annotations

import datetime
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import psutil
import pyarrow as pa
import torch

from ...evaluation.run import history
from ...evaluation.run.batches import Plan
from ...evaluation.run.progress import Progress
from ...evaluation.run.runner import Options, Prepared, run_sweep
from ...evaluation.spec.sweep import Sweep, parse_sweep
from ...evaluation.store.folder import COLUMNS, RunFolder, column_type
from ...evaluation.store.merge import merge
from ..options import notices
from .timing import interleaved

PART = 8192  # rows of the parts that a long run leaves
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
SMALL = 31  # parts of one batch that it leaves besides


def sweep_of(prompts: int, seeds: int, scales: int, images: str, steps: int = 20, batch: int = 8) -> Sweep:
    """A sweep over the bundled model of ``prompts * seeds * scales`` samples."""
    text = f"""
prompts: {{bundled: {{count: {prompts}, seed: 0}}}}
seeds: {{each: {seeds}}}
stack: cfg({{w}})
axes: {{w: {[1.5 + scale / 2 for scale in range(scales)]}}}
steps: {steps}
batch: {batch}
images: {images}
"""
    return parse_sweep(text.encode(), "the bench's sweep")


class Bare:
    """The pipeline by itself, with its own guidance, over the samples of a sweep."""

    def __init__(self, prepared: Prepared) -> None:
        self.prepared, self.generator = prepared, prepared.generator

    def __call__(self) -> None:
        """Make every picture, and keep none."""
        plan = self.prepared.plan([self.prepared.sweep])
        for place in plan.places():
            batch = plan.batch(place)
            self.generator.use(batch.cell.sampler)
            self.generator.pipe(
                prompt=[sample.prompt.text for sample in batch.samples],
                generator=[torch.Generator().manual_seed(sample.seed) for sample in batch.samples],
                num_inference_steps=batch.cell.steps,
                guidance_scale=float(dict(batch.cell.axes)["w"] or 1),
            )


def speed(repeats: int, clock: str) -> str:
    """Images a second of a sweep, over those of the bare pipeline."""
    prepared = Prepared(sweep_of(16, 1, 1, "png"), Options())
    with tempfile.TemporaryDirectory() as folder:
        runs = iter(range(10**6))

        def sweep() -> None:
            run_sweep(prepared, RunFolder(f"{folder}/{next(runs)}"))

        timing = interleaved(Bare(prepared), {"sweep": sweep}, repeats, CLOCKS[clock])["sweep"]
    share = 1 / timing.ratio.median
    return f"images a second over the bare pipeline's: {share:.3f} ({clock} time {timing.ratio}, median of {repeats})"


def records(plan: Plan, prepared: Prepared) -> pa.Table:
    """A record for each sample, as if it had been made."""
    rows: dict[str, list[Any]] = {name: [] for name in ("address", "cell", "prompt", "prompt_index", "seed", "stack")}
    for place in plan.places():
        batch = plan.batch(place)
        for sample in batch.samples:
            rows["address"].append(sample.address)
            rows["cell"].append(prepared.addresses.cell(batch.cell))
            rows["prompt"].append(sample.prompt.text)
            rows["prompt_index"].append(sample.place)
            rows["seed"].append(sample.seed)
            rows["stack"].append(batch.cell.stack)
    return completed(pa.table({name: pa.array(values, column_type(name)) for name, values in rows.items()}))


def completed(table: pa.Table) -> pa.Table:
    """The other columns of records, with values as they could be."""
    count, rng = len(table), np.random.default_rng(0)
    fixed: dict[str, Any] = {"sampler": "dpm++2m", "dtype": "float32", "model": "bundled"}
    fixed |= {"image": f"images/00/{'0' * 32}.png"}
    fixed |= {"negative": "", "extra": "", "fingerprint": "0" * 16, "versions": json.dumps({"torch": "2.13.0"})}
    for name, kind in COLUMNS.items():
        if name in table.column_names:
            continue
        if name in fixed:
            values = pa.array([fixed[name]] * count, kind)
        elif pa.types.is_floating(kind):
            values = pa.array(rng.random(count), kind)
        elif pa.types.is_timestamp(kind):
            values = pa.array([datetime.datetime.now(datetime.UTC)] * count, kind)
        else:
            values = pa.array(rng.integers(1, 50, count), pa.int64()).cast(kind)
        table = table.append_column(name, values)
    return table


def scattered(run: RunFolder, table: pa.Table) -> None:
    """Write records as a long run leaves them: large parts, and some small ones."""
    table = table.take(np.random.default_rng(0).permutation(len(table)))
    small = 8 * SMALL
    for start in range(0, len(table) - small, PART):
        run.add_records(table.slice(start, min(PART, len(table) - small - start)))
    for start in range(max(0, len(table) - small), len(table), 8):
        run.add_records(table.slice(start, 8))


class Begun(Progress):
    """Stops where the first batch would begin."""

    def begin(self, total: int, existing: int) -> None:
        """Say how long the process took to its first batch, and end it."""
        wall = time.time() - psutil.Process().create_time()
        click.echo(f"{wall:.2f} {time.process_time():.2f} {existing} {total}")
        raise KeyboardInterrupt


def start(prompts: int, folder: str) -> None:
    """The process whose start-up is timed."""
    prepared = Prepared(sweep_of(prompts, 25, 4, "none"), Options())
    try:
        run_sweep(prepared, RunFolder(folder), Begun())
    except KeyboardInterrupt:
        return


def startup(samples: int) -> str:
    """Seconds from the start of a process to its first batch, with so many samples there and a hundred missing."""
    prompts = samples // 100 + 1
    prepared = Prepared(sweep_of(prompts, 25, 4, "none"), Options())
    plan = prepared.plan([prepared.sweep])
    table = records(plan, prepared)
    with tempfile.TemporaryDirectory() as folder:
        fresh = _again("--start-of", str(prompts), f"{folder}/fresh").split()
        run = RunFolder(f"{folder}/run")
        run.location.create()
        history.write(run, [prepared.sweep], prepared.cells, prepared.addresses, "bundled")
        scattered(run, table.slice(0, len(table) - 100))
        there = _again("--start-of", str(prompts), f"{folder}/run").split()
        files = len(run.record_files())
    return (
        f"start-up with {there[2]} samples in {files} files: {there[0]} s, of which {there[1]} s of one processor; "
        f"with none: {fresh[0]} s, {fresh[1]} s"
    )


def merging(rows: int) -> str:
    """Seconds and peak memory of a process that merges so many rows."""
    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder(folder)
        for start_ in range(0, rows, PART):
            count = min(PART, rows - start_)
            addresses = [f"{value:032x}" for value in _random_addresses(count, start_)]
            prompts = [f"a prompt of the usual length, number {start_ + one}" for one in range(count)]
            run.add_records(completed(pa.table({"address": addresses, "prompt": prompts})))
        seconds, peak, merged = _again("--merge-of", folder).split()[-3:]
    return f"merge of {merged} records: {seconds} s, peak memory {int(peak) / 2**20:.2f} GiB"


def _random_addresses(count: int, seed: int) -> list[int]:
    rng = np.random.default_rng(seed)
    high, low = (rng.integers(0, 2**63, count) for _ in range(2))
    return [int(a) << 64 | int(b) for a, b in zip(high, low, strict=True)]


def _again(*arguments: str) -> str:
    command = [sys.executable, "-m", "guidestack.scripts.bench.sweep", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@click.command(help=(__doc__ or "").split("\n\n")[1])
@click.option("--repeats", type=click.IntRange(1), default=5, show_default=True, help="Rounds of the speed.")
@click.option("--samples", type=click.IntRange(1000), default=100_000, show_default=True, help="At start-up.")
@click.option("--rows", type=click.IntRange(1000), default=1_000_000, show_default=True, help="Of the merge.")
@click.option(
    "--clock",
    type=click.Choice(list(CLOCKS)),
    default="wall",
    show_default=True,
    help="cpu: processor time, of the writer's thread as well.",
)
@click.option("--only", type=click.Choice(["speed", "start", "merge"]))
@click.option("--start-of", nargs=2, hidden=True)
@click.option("--merge-of", hidden=True)
def main(
    repeats: int,
    samples: int,
    rows: int,
    clock: str,
    only: str | None,
    start_of: tuple[str, str] | None,
    merge_of: str | None,
) -> None:
    """Print the figures."""
    torch.set_num_threads(1)
    with notices():
        if start_of:
            start(int(start_of[0]), start_of[1])
        elif merge_of:
            began = time.monotonic()
            merged = merge(RunFolder(Path(merge_of)))
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            click.echo(f"{time.monotonic() - began:.1f} {peak} {merged}")
        else:
            if only in (None, "speed"):
                click.echo(speed(repeats, clock))
            if only in (None, "start"):
                click.echo(startup(samples))
            if only in (None, "merge"):
                click.echo(merging(rows))


if __name__ == "__main__":
    main()
