"""Run a sweep from its file to its metrics: what ``guidestack evaluate`` does, as a function."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ...guidance.fields import count
from ...pipelines.models.loading import chosen_device
from ..spec.sweep import Sweep, load_sweep
from ..store.folder import RunFolder
from ..store.lock import Launch
from . import runner
from .progress import Bar, Progress


def run(
    sweep: Sweep | str | Path | Mapping[str, Any],
    out: RunFolder | str | Path,
    *,
    times: int = 1,
    device: str | None = None,
    allow_pickle: bool = False,
    progress: Progress | bool = True,
) -> RunFolder:
    """Make every sample of a sweep that its run folder misses, merge the records, and compute the sweep's metrics.

    Everything is checked before the first network evaluation and before anything is written. What exists is never made
    again, so that a run that was interrupted goes on where it stopped, and a sweep may grow. The cost is that of the
    missing samples: for each, the evaluations that its stack asks for at each step. Metrics make no images.

    Args:
        sweep: what to make: a sweep, the path or fsspec address of its YAML file, the name of one that comes with
            guidestack, or a mapping with the keys of such a file (paths in it are relative to the working directory).
        out: the run folder, a path or an fsspec address; it is made if it is not there.
        times: factor on the sweep's number of seeds for each prompt; a run with a smaller factor is extended.
        device: where the model runs; by default the accelerator, if there is one. Under a launcher of several processes
            each takes the GPU of its number.
        allow_pickle: load weights that are not safetensors; such a file can run code.
        progress: whether a bar with the remaining time and the notes of the run are written to standard error; the
            commands pass an object that shows them instead.

    Returns:
        The run folder. Under a launcher only the first process waits for the others, merges and measures.

    Raises:
        InputError: the sweep cannot be read or run, `out` holds another sweep or cannot be written, or another run
            writes to it.
        NonFiniteError: samples became NaN or Inf; all others are made, kept and measured before.
        GuidestackError: a cell is refused, or the pipeline fails; what was finished stays.
    """
    folder = opened(out)
    folder.location.check()
    ready = prepared(sweep, times, device, allow_pickle)
    launch = ready.options.launch
    if isinstance(progress, bool):
        progress = Bar(launch.rank) if progress else Progress()
    outcome = runner.run_sweep(ready, folder, progress)
    if launch.rank == 0:
        progress.finished(outcome)
        runner.refuse_missing(outcome.missing)
        if ready.sweep.metrics:
            from ..analysis.measure import measure  # imports the extractors
            from ..metrics import parse_metric

            measure(folder, [parse_metric(one) for one in ready.sweep.metrics])
        progress.measured(ready.sweep)
    runner.refuse_lost(outcome)
    return folder


def opened(out: RunFolder | str | Path) -> RunFolder:
    """The run folder at a location, or the one that is given."""
    return out if isinstance(out, RunFolder) else RunFolder(out)


def prepared(
    sweep: Sweep | str | Path | Mapping[str, Any], times: int, device: str | None, allow_pickle: bool
) -> runner.Prepared:
    """A sweep with its model, checked before the first network evaluation.

    Args:
        sweep: a sweep, the path or address of its YAML file, a bundled sweep's name, or a mapping.
        times: factor on the sweep's number of seeds for each prompt.
        device: where the model runs; None for the accelerator, if there is one.
        allow_pickle: load weights that are not safetensors; such a file can run code.

    Raises:
        GuidestackError: the sweep cannot be read or run, or the model or the device cannot be used.
    """
    launch = Launch.here()
    times = count("times", times)
    read = sweep if isinstance(sweep, Sweep) else load_sweep(sweep)
    if times > 1:
        read = dataclasses.replace(read, seeds=read.seeds.more(times))
    if not device and launch.world > 1 and torch.cuda.is_available():
        device = f"cuda:{launch.local}"  # a GPU of its own for each process
    return runner.Prepared(read, runner.Options(chosen_device(device), allow_pickle, launch))
