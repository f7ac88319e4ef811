"""``python -m guidestack.scripts.dev.figures``: draw the figures of the documentation."""

from __future__ import annotations

import click

from . import edit, methods, objectives, tune, views, worlds

group = click.Group(
    commands={
        "edit": edit.main,
        "methods": methods.main,
        "objectives": objectives.main,
        "tune": tune.main,
        "views": views.main,
        "worlds": worlds.main,
    },
    help="Draw the figures of the documentation.",
)

if __name__ == "__main__":
    group()
