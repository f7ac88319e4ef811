"""The option ``--json`` of the commands that print what they found."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import click

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON document, whose keys are in docs/programs.md."
)


def echo_json(document: Mapping[str, Any]) -> None:
    """Print a document; its numbers are finite, as JSON knows no others."""
    click.echo(json.dumps(document, indent=1, allow_nan=False))
