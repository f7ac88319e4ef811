"""``guidestack evaluate``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from ..guidance.errors import InputError
from ..guidance.words import counted, were
from .options import device_option, needs, notices, rules_given, rules_option, threads_option

if TYPE_CHECKING:
    from ..evaluation import RunFolder, Sweep
    from ..evaluation.run.progress import Outcome, Progress
    from ..evaluation.store.lock import Launch


@click.command()
@click.argument("sweep", metavar="SWEEP.yaml")
@click.option("--out", metavar="RUN", help="Folder for the results: a path, or an fsspec address.")
@click.option("--dry-run", is_flag=True, help="Print cells, images, evaluations and a time estimate; write nothing.")
@click.option(
    "--times",
    type=click.IntRange(1),
    default=1,
    help="Multiply the seeds of each prompt by this, for narrower intervals.",
)
@click.option("--first", type=click.IntRange(1), help="Use the first N prompts only, as a pilot.")
@click.option(
    "--plan",
    is_flag=True,
    help="Print how many prompts each row of the sweep's claim needs, from the samples in RUN; make nothing.",
)
@click.option("--merge-only", is_flag=True, help="Merge the records of RUN; make nothing.")
@device_option
@threads_option
@click.option("--allow-pickle", is_flag=True, help="Load weights that are not safetensors: they can run code.")
@rules_option
def command(**options: Any) -> None:
    """Run a sweep: every cell of its axes, on every prompt, with every seed.

    SWEEP.yaml is a file, or the name of a sweep that comes with guidestack, such as smoke. Everything is checked before
    the first network call. A run may be stopped at any moment: the same command continues it. Samples that exist in
    RUN are never made again, also when an axis gets a further value.
    """
    with notices():
        _evaluate(options)


def _evaluate(options: dict[str, Any]) -> None:
    with needs("evaluate"):
        from ..evaluation import RunFolder, run
        from ..evaluation.analysis.planning import plan
        from ..evaluation.run import runner
        from ..evaluation.run.estimate import estimate
        from ..evaluation.run.run import prepared
        from ..evaluation.spec.sweep import load_sweep
        from ..evaluation.store.lock import Launch
    launch = Launch.here()
    if not options["out"] and not options["dry_run"] and not options["plan"]:
        raise InputError("say where the results go with --out RUN; --dry-run writes nothing")
    folder = RunFolder(options["out"]) if options["out"] else None
    if folder is not None:
        folder.location.check()
    if options["merge_only"]:
        assert folder is not None  # refused above
        click.echo(_records(folder, runner.merge_only(folder, launch)))
        return
    what = {name: options[name] for name in ("times", "device", "allow_pickle")}
    sweep: Sweep | str = options["sweep"]
    if options["first"]:
        sweep = load_sweep(options["sweep"]).first(options["first"])
    if options["plan"]:
        if folder is None:
            raise InputError("--plan counts by the samples of a pilot; give its folder with --out RUN")
        click.echo(plan(load_sweep(options["sweep"]), folder))
        return
    if options["dry_run"]:
        ready = prepared(sweep, **what)
        click.echo(estimate(ready, *runner.dry_run(ready, folder)))
        return
    assert folder is not None  # refused above
    run(sweep, folder, **what, progress=_progress_for(folder, launch))


def _progress_for(folder: RunFolder, launch: Launch) -> Progress:
    """A bar that also prints what was made, the metrics and the claim."""
    from ..evaluation.analysis.measure import Cells
    from ..evaluation.analysis.trust import cautions
    from ..evaluation.metrics import parse_metric
    from ..evaluation.run.progress import Bar

    rules = rules_given()

    class Told(Bar):
        def finished(self, outcome: Outcome) -> None:
            click.echo(_account(folder, outcome, launch.world))

        def measured(self, sweep: Sweep) -> None:
            if sweep.metrics:
                click.echo(f"\n{folder.summary()}")
                for line in cautions(Cells(folder), [parse_metric(one) for one in sweep.metrics]):
                    click.echo(f"caution: {line}")
                click.echo()
            if sweep.claim:
                from ..evaluation.analysis.findings import findings, table

                click.echo(f"{table(sweep.claim, findings(folder, sweep.claim))}\n")
            click.echo(f"next: guidestack report {folder}{rules}")

    return Told(launch.rank)


def _account(folder: RunFolder, outcome: Outcome, processes: int) -> str:
    by = f" by {processes} processes" if processes > 1 else ""
    there = f", {were(outcome.existing)} there already" if outcome.existing else ""
    return (
        f"{counted(outcome.made + outcome.others, 'image')} made{by}{there}: "
        f"{counted(outcome.evaluations + outcome.others_evaluations, 'network evaluation')}, {outcome.seconds:.1f} s\n"
        f"{_records(folder, outcome.records)}"
    )


def _records(folder: RunFolder, count: int) -> str:
    return f"records: {folder}/records.parquet, {counted(count, 'row')}"


if __name__ == "__main__":  # for launchers: accelerate launch -m guidestack.scripts.evaluate SWEEP.yaml --out RUN
    from .cli import main

    sys.argv.insert(1, "evaluate")
    main()
