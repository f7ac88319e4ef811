"""``guidestack report``."""

from __future__ import annotations

from typing import Any

import click
from tqdm import tqdm

from .options import needs, notices, rules_option


@click.command()
@click.argument("run", metavar="RUN")
@click.option(
    "--metric",
    "metrics",
    metavar="METRIC",
    multiple=True,
    help="A metric to add to those of the sweep; may be repeated.",
)
@click.option(
    "--embed",
    type=click.FloatRange(0),
    metavar="MB",
    help="Images in the page itself, at most; others are links.  [16]",
)
@rules_option
def command(**options: Any) -> None:
    """Write RUN/report.html: one page with plots, tables, images, and what holds at matched strength.

    It needs no server and no network access. The plots are in RUN/plots as well, as SVG and CSV.
    """
    with notices():
        _report(options)


def _report(options: dict[str, Any]) -> None:
    with needs("report"):
        from ..evaluation import report
    embed = {} if options["embed"] is None else {"embed": options["embed"]}
    with tqdm(bar_format="{desc}", leave=False, disable=None) as line:  # None: where nobody watches
        written = report(options["run"], options["metrics"], progress=line.set_description_str, **embed)
    click.echo(f"report: {written}")
