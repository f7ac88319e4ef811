"""``guidestack metrics``."""

from __future__ import annotations

import click

from ..guidance.errors import InputError
from .as_json import echo_json, json_option
from .options import needs


def markdown() -> str:
    """The table of docs/metrics.md."""
    from ..evaluation.metrics import metrics, signature, summary

    lines = ["| metric | what it is | better | fewest |", "|---|---|---|---|"]
    for name, metric in metrics().items():
        better = {"up": "more", "down": "less", "none": ""}[metric.better]
        lines.append(f"| `{signature(name)}` | {summary(name)} | {better} | {metric.fewest} |")
    return "\n".join(lines)


@click.command()
@click.option("--markdown", "as_markdown", is_flag=True, help="Print the table of docs/metrics.md.")
@json_option
def command(as_markdown: bool, as_json: bool) -> None:
    """List the metrics of sweeps: their parameters, and what each is."""
    with needs("metrics"):
        from ..evaluation.metrics import metrics, signature, summary
    if as_markdown and as_json:
        raise InputError("--markdown and --json are two forms of one list; give one of them")
    if as_markdown:
        click.echo(markdown())
        return
    if as_json:
        listed = [
            {
                "name": name,
                "signature": signature(name),
                "summary": summary(name),
                "better": metric.better,
                "fewest": metric.fewest,
            }
            for name, metric in metrics().items()
        ]
        echo_json({"metrics": listed})
        return
    for name in metrics():
        click.echo(f"{signature(name)}\n    {summary(name)}")
