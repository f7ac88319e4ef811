"""``python -m guidestack.scripts.bench.sweep``: what a sweep costs beside its pictures.

Speed: a sweep over the bare pipeline at the same batch and the same evaluations, batch by batch in one process, and how
its memory grows. Start-up:
from the start of a process to its first batch, with so many samples there. Merge: time and peak memory of a process
that merges so many records out of parts.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
import numpy as np
import psutil
import pyarrow as pa
import torch

from ...evaluation.run import history
from ...evaluation.run.batches import Batch, Plan
from ...evaluation.run.progress import Progress
from ...evaluation.run.runner import Options, Prepared, run_sweep
from ...evaluation.spec.sweep import Sweep, parse_sweep
from ...evaluation.store.folder import COLUMNS, RunFolder, column_type
from ...pipelines.models.generator import Made
from ..options import notices
from .cli import CLOCKS, machine, write
from .table import Row
from .timing import Spread, Timing

PART = 8192  # rows of the parts that a long run leaves
SMALL = 31  # parts of one batch that it leaves besides
WHAT = "a sweep"


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


class Beside:
    """A sweep of which every batch is also made by the bare pipeline, with its own guidance, before it or after it.

    Args:
        prepared: the sweep.
        clock: one of `CLOCKS`. With ``cpu`` the sweep has the time of the writer's thread too, and the bare pipeline
            that of its own thread only.

    Attributes:
        bare: seconds of each batch by the bare pipeline.
        sweep: seconds from batch to batch without these: of making one, and of all that a sweep does between two.
        memory: bytes that the process holds after each batch.
    """

    def __init__(self, prepared: Prepared, clock: str) -> None:
        self.prepared, self.make = prepared, prepared.make
        self.clock, self.own = CLOCKS[clock], time.thread_time if clock == "cpu" else CLOCKS[clock]
        self.bare, self.sweep, self.memory = list[float](), list[float](), list[int]()

    def run(self, folder: str) -> None:
        """Run the sweep into a new folder; Ctrl-C ends it, and what was measured until then counts."""
        self.since = self.clock()
        self.prepared.make = self._made  # type: ignore[method-assign]
        with suppress(KeyboardInterrupt):
            run_sweep(self.prepared, RunFolder(folder))
            self.sweep[-1] += self.clock() - self.since  # merging

    def _made(self, batch: Batch) -> Made:
        first = len(self.bare) % 2 == 1  # in turns: caches remember who was there
        spent = self._bare(batch) if first else 0.0
        made = self.make(batch)
        spent += 0.0 if first else self._bare(batch)
        now = self.clock()
        self.sweep.append(now - self.since - spent)
        self.since = now
        self.memory.append(psutil.Process().memory_info().rss)
        return made

    def _bare(self, batch: Batch) -> float:
        generator, began = self.prepared.generator, self.own()
        generator.use(batch.cell.sampler)
        generator.pipe(
            prompt=[sample.prompt.text for sample in batch.samples],
            generator=[torch.Generator().manual_seed(sample.seed) for sample in batch.samples],
            num_inference_steps=batch.cell.steps,
            guidance_scale=float(dict(batch.cell.axes)["w"] or 1),
        )
        self.bare.append(self.own() - began)
        return self.bare[-1]


def speed(images: int, clock: str) -> list[Row]:
    """Time of a sweep over the bare pipeline's, and memory of its second half over that of its second quarter."""
    prepared = Prepared(sweep_of(images, 1, 1, "png"), Options())
    beside = Beside(prepared, clock)
    with tempfile.TemporaryDirectory() as folder:
        beside.run(f"{folder}/run")
    warm = slice(2, None)  # the first batches of a process pay for what later ones find in place
    count = len(beside.sweep)
    pairs = list(zip(beside.sweep, beside.bare[:count], strict=True))[warm]
    ratios = [one / other for one, other in pairs]
    whole = sum(one for one, _ in pairs) / sum(other for _, other in pairs)
    each = dataclasses.replace(Spread.of(ratios), median=whole)
    before, after = max(beside.memory[count // 4 : count // 2]), beside.memory[count // 2 :]
    held = Spread.of([one / before for one in after])
    name, stack = f"{8 * count} images, batches of 8, {clock} time", prepared.cells[0].stack
    seconds = Spread.of(beside.sweep[warm])
    return [
        Row(f"{WHAT} over the bare pipeline", name, stack, 8, Timing(seconds, each), 1 / 0.97),
        Row(f"{WHAT}, memory of its second half over its second quarter", name, stack, 8, Timing(seconds, held), 1.02),
    ]


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
        """Print how long the process took to its first batch, and end the process."""
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
@click.option("--images", type=click.IntRange(32), default=256, show_default=True, help="Of the speed.")
@click.option("--samples", type=click.IntRange(1000), default=100_000, show_default=True, help="At start-up.")
@click.option("--rows", type=click.IntRange(1000), default=1_000_000, show_default=True, help="Of the merge.")
@click.option(
    "--clock",
    type=click.Choice(list(CLOCKS)),
    default="wall",
    show_default=True,
    help="cpu: processor time, of the writer's thread as well.",
)
@click.option("--json", "to", type=click.Path(path_type=Path), help="Also write the rows of the speed here.")
@click.option("--only", type=click.Choice(["speed", "start", "merge"]))
@click.option("--start-of", nargs=2, hidden=True)
@click.option("--merge-of", hidden=True)
def main(
    images: int,
    samples: int,
    rows: int,
    clock: str,
    to: Path | None,
    only: str | None,
    start_of: tuple[str, str] | None,
    merge_of: str | None,
) -> None:
    """Measure speed, start-up and merging of sweeps, and print the figures."""
    torch.set_num_threads(1)
    with notices():
        if start_of:
            start(int(start_of[0]), start_of[1])
        elif merge_of:
            began = time.monotonic()
            merged = RunFolder(Path(merge_of)).merge()
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            click.echo(f"{time.monotonic() - began:.1f} {peak} {merged}")
        else:
            if only in (None, "speed"):
                measured = speed(images, clock)
                for row in measured:
                    click.echo(f"{row.what}:\n{row.line()}")
                if to:
                    write([row.mapping() | machine() for row in measured], to)
            if only in (None, "start"):
                click.echo(startup(samples))
            if only in (None, "merge"):
                click.echo(merging(rows))


if __name__ == "__main__":
    main()
