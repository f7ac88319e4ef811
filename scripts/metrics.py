"""``guidestack metrics``."""

from __future__ import annotations

import click

from ..guidance.errors import InputError


def markdown() -> str:
    """The table of docs/metrics.md."""
    from ..evaluation.metrics import metrics, signature, summary

    lines = ["| metric | what it is | better | fewest |", "|---|---|---|---|"]
    for name, metric in metrics().items():
        better = {"up": "more", "down": "less", "none": ""}[metric.better]
        lines.append(f"| `{signature(name)}` | {summary(name)} | {better} | {metric.minimum} |")
    return "\n".join(lines)


@click.command()
@click.option("--markdown", "as_markdown", is_flag=True, help="As the table of docs/metrics.md.")
def command(as_markdown: bool) -> None:
    """List the metrics of sweeps: parameters, what each is, and the full name of its numbers."""
    try:
        from ..evaluation.metrics import metrics, signature, summary
    except ImportError as error:
        if (error.name or "").startswith("guidestack"):
            raise
        raise InputError(f"metrics need {error.name}: pip install 'guidestack[evaluation]'") from error
    if as_markdown:
        click.echo(markdown())
        return
    for name in metrics():
        click.echo(f"{signature(name)}\n    {summary(name)}")
