"""``guidestack evaluate``."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import click

from ..guidance.errors import InputError
from ..guidance.words import counted
from ..pipelines.models.loading import chosen_device
from .options import device_option, notices, rules_option, threads_option


@click.command()
@click.argument("sweep", metavar="SWEEP.yaml")
@click.option("--out", metavar="RUN", help="Folder for the results: a path, or an fsspec address.")
@click.option("--dry-run", is_flag=True, help="Print cells, images, evaluations and a time estimate; write nothing.")
@click.option(
    "--times", type=click.IntRange(1), default=1, help="Times as many seeds for each prompt: narrower intervals."
)
@click.option("--merge-only", is_flag=True, help="Merge the records of RUN; make nothing.")
@device_option
@threads_option
@click.option("--allow-pickle", is_flag=True, help="Load weights that are not safetensors: they can run code.")
@rules_option
def command(**options: Any) -> None:
    """Run a sweep: every cell of its axes, on every prompt, with every seed.

    SWEEP.yaml is a file, or the name of a sweep that comes with guidestack, such as smoke. Everything is checked before
    the first network call. What exists in RUN is never made again: stop it at any moment and start it again, or add a
    value to an axis.
    """
    with notices():
        _evaluate(options)


def _evaluate(options: dict[str, Any]) -> None:
    try:
        from ..evaluation.run import runner
        from ..evaluation.run.progress import Bar
        from ..evaluation.spec.sweep import load_sweep
        from ..evaluation.store.folder import RunFolder
        from ..evaluation.store.lock import Launch
    except ImportError as error:
        if (error.name or "").startswith("guidestack"):
            raise
        raise InputError(f"evaluate needs {error.name}: pip install 'guidestack[evaluation]'") from error
    launch = Launch.here()
    if not options["out"] and not options["dry_run"]:
        raise InputError("say where the results go with --out RUN; --dry-run writes nothing")
    run = RunFolder(options["out"]) if options["out"] else None
    if run is not None:
        run.location.check()
    if options["merge_only"]:
        assert run is not None  # refused above
        click.echo(f"records: {run}/records.parquet, {counted(runner.merge_only(run, launch), 'row')}")
        return
    sweep = load_sweep(options["sweep"])
    if options["times"] > 1:
        sweep = dataclasses.replace(sweep, seeds=sweep.seeds.more(options["times"]))
    device = chosen_device(options["device"] or _by_rank(launch.local, launch.world))
    prepared = runner.Prepared(sweep, runner.Options(device, options["allow_pickle"], launch))
    if options["dry_run"]:
        from ..evaluation.run.estimate import estimate

        click.echo(estimate(prepared, *runner.dry_run(prepared, run)))
        return
    assert run is not None  # refused above
    outcome = runner.run_sweep(prepared, run, Bar(launch.rank))
    if launch.rank == 0:
        click.echo(_account(run, outcome, launch.world))
        runner.refuse_missing(outcome.missing)
        _measure(run, sweep.metrics)
        if sweep.claim:
            from ..evaluation.analysis.findings import findings, table

            click.echo(f"{table(sweep.claim, findings(run, sweep.claim))}\n")
        click.echo(f"next: guidestack report {run}")
    runner.refuse_lost(outcome)


def _account(run: Any, outcome: Any, processes: int) -> str:
    by = f" by {processes} processes" if processes > 1 else ""
    there = (
        f", {outcome.existing} {'was' if outcome.existing == 1 else 'were'} there already" if outcome.existing else ""
    )
    return (
        f"{counted(outcome.made + outcome.others, 'image')} made{by}{there}: "
        f"{counted(outcome.evaluations + outcome.others_evaluations, 'network evaluation')}, {outcome.seconds:.1f} s\n"
        f"records: {run}/records.parquet, {counted(outcome.records, 'row')}"
    )


def _measure(run: Any, metrics: tuple[str, ...]) -> None:
    """Compute the metrics of sets of images, and show all of them."""
    if not metrics:
        return
    from ..evaluation.analysis.measure import measure
    from ..evaluation.analysis.summary import summary
    from ..evaluation.metrics import parse_metric

    found = measure(run, [parse_metric(one) for one in metrics])
    click.echo(f"\n{summary(found, run.cells())}\n")


def _by_rank(local: int, world: int) -> str | None:
    """Under a launcher each process has a GPU of its own, where there are GPUs."""
    import torch

    return f"cuda:{local}" if world > 1 and torch.cuda.is_available() else None


if __name__ == "__main__":  # for launchers: accelerate launch -m guidestack.scripts.evaluate SWEEP.yaml --out RUN
    from .cli import main

    sys.argv.insert(1, "evaluate")
    main()
