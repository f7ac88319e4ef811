"""``guidestack world``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..guidance.errors import InputError, shown
from .as_json import echo_json, json_option
from .options import needs, notices, rules_option, steps_option, threads_option

BATCHES = 10
DEFAULT = ("distance", "coverage", "off", "agreement", "norm", "variety")


@click.command()
@click.argument("stacks", nargs=-1, metavar="[STACK]...")
@click.option("--world", "name", default="plane", show_default=True, help="plane (2 dimensions) or space (64).")
@click.option("--condition", default="a", show_default=True, help="The prompt: a, b or c, 'a inner', 'outer', 'all'.")
@click.option("--negative", "negatives", multiple=True, help="A negative prompt, likewise; may be repeated.")
@click.option("--positive", "positives", multiple=True, help="A positive beside the prompt; may be repeated.")
@click.option("--blur", type=float, default=1.0, show_default=True, help="Factor on the network's widths; 1: exact.")
@click.option("--law", help="What samples are compared with, such as 'a^3', the guided law.  [the condition's]")
@click.option("--sampler", default="dpm++2m-karras", show_default=True, help="Sampler, as for generate.")
@steps_option(25)
@click.option(
    "--samples", type=click.IntRange(100, 10_000_000), default=20_000, show_default=True, help="Samples a row."
)
@click.option("--seed", type=click.IntRange(0, 2**40), default=0, show_default=True, help="Seed of the first sample.")
@click.option("--measure", "measures", multiple=True, help="Measure in place of the default ones; may be repeated.")
@click.option("--picture", type=click.Path(path_type=Path), help="PNG to write: the samples over the densities.")
@click.option("--claim", help="A claim that comes with guidestack, such as cfg, or a file: test it, instead of stacks.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder that keeps a claim's samples, to go on with it.")
@rules_option
@threads_option
@json_option
def command(**options: Any) -> None:
    """Sample a world whose laws are known in closed form under each STACK, and measure how far the samples are off.

    The first row is exact draws of the law: what the measures give where nothing is wrong. Intervals are at 95%.
    """
    with needs("world"):
        from ..evaluation.verdicts import overall
        from ..evaluation.world import claims
    with notices():
        if options["claim"] is None:
            _measure(options)
            return
        if options["stacks"] or options["picture"]:
            raise InputError("a claim names its own stacks; drop the stacks and --picture")
        claim = claims.load_claim(options["claim"])
        found = claims.tested(claim, options["out"])
    if options["as_json"]:
        rows = [{**one.plain(), "verdict": one.verdict} for one in found]
        echo_json({"claim": claim.words, "arxiv": claim.paper, "rows": rows, "verdict": overall(found)})
        return
    click.echo("\n".join([f"claim (arXiv:{claim.paper}): {claim.words}", *(f"  {one.told}" for one in found)]))
    click.echo(overall(found))


def _measure(options: dict[str, Any]) -> None:
    from ..evaluation.values import meant
    from ..evaluation.world import WORLDS, Drawn, draw, measured

    if options["name"] not in WORLDS:
        raise InputError(f"no world {shown(options['name'])}{meant(options['name'], list(WORLDS))}")
    if not options["stacks"]:
        raise InputError("give a stack such as 'cfg(4)', or --claim NAME")
    if options["picture"] and options["picture"].suffix.lower() != ".png":
        raise InputError(f"--picture ends in .png; got {str(options['picture'])!r}")
    world, count, condition = WORLDS[options["name"]], options["samples"], options["condition"]
    law = options["law"] or condition
    measures = options["measures"] or DEFAULT
    keys = ("negatives", "positives", "blur", "sampler", "steps", "seed")
    batch = count // BATCHES
    cells = {f"exact {law}": Drawn(world.law(law).draw(count, 1), 0.0)}
    for stack in options["stacks"]:
        how = {key: options[key] for key in keys}
        cells[stack] = draw(world, stack, condition, count=count, batch=batch, **how)
    found = {name: measured(world, drawn, condition, measures, law, batch) for name, drawn in cells.items()}
    if options["picture"]:
        _draw(world, cells, condition, options["picture"])
    if options["as_json"]:
        rows = [
            {
                "stack": name,
                "evaluations": cells[name].evaluations,
                "measures": {key: {**one._asdict()} for key, one in each.items()},
            }
            for name, each in found.items()
        ]
        echo_json({"world": world.name, "condition": condition, "law": law, "samples": count, "cells": rows})
        return
    lines = [["", "evaluations", *measures]]
    for name, each in found.items():
        told = [f"{one.value:.4g} ±{one.high - one.value:.1g}" for one in each.values()]
        lines.append([name, f"{cells[name].evaluations:.4g}", *told])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        click.echo("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())
    seconds = sum(one.seconds for one in cells.values())
    click.echo(f"{count} samples a row, {seconds:.1f} s")


def _draw(world: Any, cells: dict[str, Any], condition: str, path: Path) -> None:
    from ..evaluation.plots import to_png
    from ..evaluation.world.picture import Panel, picture
    from ..guidance.files import write_whole

    panels = [Panel(name, drawn.x) for name, drawn in cells.items()]
    write_whole(path, to_png(picture(world, panels, condition)))
